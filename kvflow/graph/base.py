"""Value types of the Agent Step Graph."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final, Literal

__all__ = ["INFINITE_STEPS", "Agent", "Edge", "EdgeKind", "EventOutcome", "Join"]

INFINITE_STEPS: Final = math.inf
"""Steps of an agent that cannot run (again); ``null`` in JSON."""

Join = Literal["all", "any"]
EdgeKind = Literal["always", "choice"]


@dataclass(frozen=True, slots=True)
class Agent:
    """A node of the graph.

    Attributes:
        agent_id: unique in its graph. Within a client, equal ids mean the same agent, so that
            workflows share its fixed prefix.
        join: ``all`` waits for a mark on every in-edge, ``any`` is content with the first one.
        fixed_prefix_tokens: length of the prompt part common to all calls; None if not known.
        expected_duration_s: how long a run takes, from its start to its finish; None if not known.
    """

    agent_id: str
    join: Join = "all"
    fixed_prefix_tokens: int | None = None
    expected_duration_s: float | None = None


@dataclass(frozen=True, slots=True)
class Edge:
    """``target`` can run after ``source`` has finished.

    Attributes:
        source: agent_id.
        target: agent_id; may be the source itself.
        kind: ``always`` if every finish of the source leads here, ``choice`` if only one of the
            source's choice edges is taken.
        probability: how likely a finish of the source leads here, over 0 and at most 1; None if
            not known. Those of one source's choice edges add up to at most 1: what is missing is
            the way out. Steps do not depend on it.
        expected_duration_s: from the finish of the source to the start of the target: a tool, or a
            person. None if not known.
        max_iterations: how many starts may take a mark of this edge, in the life of a workflow; of
            a loop, how often it can be gone round. After that the edge leads nowhere. None: any
            number.
    """

    source: str
    target: str
    kind: EdgeKind = "always"
    probability: float | None = None
    expected_duration_s: float | None = None
    max_iterations: int | None = None


@dataclass(frozen=True, slots=True)
class EventOutcome:
    """What an event did.

    Attributes:
        duplicate: the event was known by its step_id; nothing changed.
        misprediction: the agent started although the graph did not let it; it took no mark.
    """

    duplicate: bool
    misprediction: bool
