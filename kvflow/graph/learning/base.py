"""What is learned from, and the limits of what is remembered."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

__all__ = [
    "MAX_AGENTS",
    "MAX_FAMILIES",
    "MAX_SUCCESSORS",
    "MIN_PROBABILITY",
    "Began",
    "Followed",
    "FamilyKey",
    "Lesson",
    "Scored",
]

MIN_PROBABILITY: Final = 0.1
"""Successors less likely than this are not predicted: wrong turns would make every agent look
imminent."""

MAX_AGENTS: Final = 256
"""Per family. Every update of a workflow that declares nothing names all its family's agents; with
more than this (ids made up for each call) there is no order to learn."""

MAX_SUCCESSORS: Final = 64
"""Per agent."""

MAX_FAMILIES: Final = 10_000
"""Over all clients."""

FamilyKey = tuple[str, str, str]
"""``(namespace, client_id, family)``."""


@dataclass(frozen=True, slots=True)
class Began:
    """A workflow began with a run of this agent, or of these side by side."""

    agent_id: str
    first: bool
    """Whether it is the first of them."""


@dataclass(frozen=True, slots=True)
class Followed:
    """A finished run that nothing can follow any more, and the agents that did.

    None did: the workflow ended after it.
    """

    agent_id: str
    followers: frozenset[str]


@dataclass(frozen=True, slots=True)
class Scored:
    """A run started that came after others.

    Attributes:
        probability: that had been given to this agent, before the start was known; 0 if none.
        predecessors: the agents whose finishes it came after.
    """

    agent_id: str
    probability: float
    predecessors: frozenset[str]


Lesson = Began | Followed | Scored
