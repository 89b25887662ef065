"""What the agents of a team send, piece by piece."""

from __future__ import annotations

import random
from collections.abc import Sequence

from kvflow.workload.base import Piece, WorkloadCall
from kvflow.workload.scenario import Prompts

__all__ = ["PromptWriter", "fixed_lengths", "fixed_prefixes"]


def fixed_lengths(prompts: Prompts, agents: int, rng: random.Random) -> list[int]:
    """Return the length of each agent's fixed prefix; an even spread comes in a random order."""
    given = prompts.fixed_tokens
    if isinstance(given, int):
        return [given] * agents
    least, most = given
    gaps = max(agents - 1, 1)
    lengths = [least + round((most - least) * agent / gaps) for agent in range(agents)]
    rng.shuffle(lengths)
    return lengths


def fixed_prefixes(
    prompts: Prompts, client_id: str, agent_ids: Sequence[str], lengths: Sequence[int]
) -> list[tuple[Piece, ...]]:
    """Return the pieces each agent of a client begins with: what all share, then its own."""
    shared = prompts.shared_tokens
    common = (Piece(f"{client_id}/shared", shared),) if shared else ()
    return [
        (*common, Piece(f"{client_id}/{agent_id}", length - shared)) if length > shared else common
        for agent_id, length in zip(agent_ids, lengths, strict=True)
    ]


class PromptWriter:
    """Writes the calls of one workflow; remembers what each agent said where that is a chat."""

    def __init__(
        self,
        prompts: Prompts,
        workflow_id: str,
        agent_ids: Sequence[str],
        prefixes: Sequence[tuple[Piece, ...]],
    ) -> None:
        self._prompts = prompts
        self._workflow_id = workflow_id
        self._agent_ids = agent_ids
        self._prefixes = prefixes
        self._chats: dict[int, tuple[Piece, ...]] = {}

    def call(
        self, agent: int, position: int, after: tuple[int, ...], pause_s: float
    ) -> WorkloadCall:
        """Return the next call, of the agent at this place in the team."""
        key = f"{self._workflow_id}/{position}"
        prefix = self._prefixes[agent]
        prompt = (
            *(self._chats.get(agent, prefix) if self._prompts.chat else prefix),
            Piece(key, self._prompts.dynamic_tokens),
        )
        answer = Piece(f"{key}/answer", self._prompts.output_tokens)
        if self._prompts.chat:
            self._chats[agent] = (*prompt, answer)
        return WorkloadCall(self._agent_ids[agent], after, pause_s, prompt, len(prefix), answer)
