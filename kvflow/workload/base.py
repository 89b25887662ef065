"""What a multi-agent workload is, before anything runs it: workflows, their calls, their prompts.

The benchmark gives these calls to a real engine and the simulator to a model of one, so that both
run the same. Nothing here says how long anything takes; what a call waits for is said by the calls
before it and the pause after them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

from kvflow.graph import AgentStepGraph

__all__ = ["Piece", "Workload", "WorkloadCall", "WorkloadWorkflow"]


class Piece(NamedTuple):
    """A run of tokens. Equal keys are equal tokens, and different keys differ from the first on.

    ``key`` is unique over the whole workload; what two prompts share is the pieces they begin with.
    """

    key: str
    tokens: int


@dataclass(frozen=True, slots=True)
class WorkloadCall:
    """One call of an agent.

    Attributes:
        agent_id: who calls; may be an agent that the declared graph does not have.
        after: positions, in the workflow's calls, of those that have to be over before; all lower
            than this call's own.
        pause_s: from the end of the last of these (or from the workflow's beginning) to this call:
            a tool, or a person.
        prompt: the whole prompt, from its first token on. A piece may be an earlier call's
            ``answer``, as in a chat.
        fixed_pieces: how many pieces, from the first on, are the agent's fixed prefix.
        answer: what is generated; its length is exact.
    """

    agent_id: str
    after: tuple[int, ...]
    pause_s: float
    prompt: tuple[Piece, ...]
    fixed_pieces: int
    answer: Piece

    @property
    def prompt_tokens(self) -> int:
        return sum(piece.tokens for piece in self.prompt)

    @property
    def fixed_tokens(self) -> int:
        """Length of the agent's fixed prefix."""
        return sum(piece.tokens for piece in self.prompt[: self.fixed_pieces])


@dataclass(frozen=True, slots=True)
class WorkloadWorkflow:
    """One workflow, from its first call to its last.

    Attributes:
        arrival_s: when it begins, in seconds from the start of the workload; None where it begins
            as soon as there is a place for it.
        graph: what is declared to KVFlow, right or wrong; None if nothing is.
        calls: all calls that are going to be made, in an order in which they could be made.
    """

    client_id: str
    workflow_id: str
    arrival_s: float | None
    graph: AgentStepGraph | None
    calls: tuple[WorkloadCall, ...]


@dataclass(frozen=True, slots=True)
class Workload:
    """Workflows in the order in which they begin.

    Attributes:
        name: of the scenario.
        concurrency: workflows under way at most; the next begins when one ends. None where each
            begins at its ``arrival_s``.
        workflows: makes them anew at each call, always the same ones, one by one: there may be
            millions.
        warm_up_calls: calls at the beginning that fill the cache and are not counted, in the order
            in which they end.
    """

    name: str
    concurrency: int | None
    workflows: Callable[[], Iterator[WorkloadWorkflow]]
    warm_up_calls: int = 0
