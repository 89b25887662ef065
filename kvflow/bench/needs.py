"""What a workload needs of a cache, worked out before anything runs."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from kvflow.workload import Piece, WorkloadWorkflow

__all__ = ["ClientPriorities", "WorkloadNeeds", "workload_needs"]


@dataclass(frozen=True, slots=True)
class WorkloadNeeds:
    """Sizes in tokens.

    Attributes:
        workflows, calls: how many there are.
        largest_prompt_tokens: of the longest prompt.
        largest_call_tokens: prompt and answer of the longest call, in whole pages.
        cached_tokens: all that a cache ends up with if it never evicts: what calls share counts
            once, and each other part in whole pages.
        agents: ``(client_id, agent_id)`` in the order of their first calls.
    """

    workflows: int
    calls: int
    largest_prompt_tokens: int
    largest_call_tokens: int
    cached_tokens: int
    agents: tuple[tuple[str, str], ...]


def workload_needs(workflows: Iterable[WorkloadWorkflow], page_tokens: int) -> WorkloadNeeds:
    """Read the whole workload once. Time and memory grow with the number of different pieces."""
    # A place in the tree of prompts is known by the place before it and the piece that leads there.
    places: dict[tuple[int, Piece], int] = {}
    counted = calls = longest = largest = cached = 0
    agents: dict[tuple[str, str], None] = {}
    for workflow in workflows:
        counted += 1
        for call in workflow.calls:
            calls += 1
            agents.setdefault((workflow.client_id, call.agent_id))
            longest = max(longest, call.prompt_tokens)
            largest = max(largest, call.prompt_tokens + call.answer.tokens)
            place = new_tokens = 0
            for piece in (*call.prompt, call.answer):
                if (place, piece) not in places:
                    places[place, piece] = len(places) + 1
                    new_tokens += piece.tokens
                place = places[place, piece]
            # A page that is shared in part is held once more.
            cached += _whole_pages(new_tokens, page_tokens) + page_tokens
    return WorkloadNeeds(
        counted, calls, longest, _whole_pages(largest, page_tokens), cached, tuple(agents)
    )


class ClientPriorities:
    """The priorities of the ``priority`` arm: an agent's place in the order of first calls.

    The first agent has the highest. SGLang evicts the lowest first, and a cached node keeps the
    highest priority that any request had which touched it. A client can't lower it again, nor
    raise it without a request; so priorities that follow the workflow's course would soon all be
    at their highest, and no better than LRU. What a client can do is to rank its agents once and
    for all, so that the same ones always stay. The rank holds for the whole prompt, its suffix
    included, as a request has one priority.
    """

    def __init__(self, agents: Iterable[tuple[str, str]]) -> None:
        order = list(agents)
        self._priority = {agent: len(order) - place for place, agent in enumerate(order)}

    def of(self, client_id: str, agent_id: str) -> int:
        """Higher stays longer; 1 is the lowest that an agent has, 0 what others have."""
        return self._priority.get((client_id, agent_id), 0)


def _whole_pages(tokens: int, page_tokens: int) -> int:
    return -(-tokens // page_tokens) * page_tokens
