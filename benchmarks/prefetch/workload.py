"""What the prefetch benchmarks share and that needs no engine: rings, claims, sums."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

from kvflow.bench.prompts import words
from kvflow.bench.reply import Reply
from kvflow.bench.summary import prefetch_figures as counted_figures
from kvflow.demo.summary import percentile

__all__ = [
    "PAGE_TOKENS",
    "Call",
    "Claims",
    "Ring",
    "differences",
    "fixed_prefix_tokens",
    "prefetch_figures",
    "reversed_claims",
    "served_from_device",
    "shuffled_claims",
    "summarize",
]

PAGE_TOKENS: Final = 16
SERVED_FROM_DEVICE: Final = 0.95

Message = dict[str, str]
Claims = Callable[[int], dict[str, int]]
"""The steps-to-execution that a call of the agent with this number brings along."""


@dataclass(frozen=True, slots=True)
class Ring:
    """``agents`` agents that are called one after the other, round after round."""

    agents: int = 10
    prefix_words: int = 600
    question_words: int = 30
    max_tokens: int = 8
    seed: int = 0

    def messages(self, agent: int, round_number: int) -> list[Message]:
        """A fixed prefix of the agent's own, and a question that is new each time."""
        prefix = words(f"{self.seed} agent {agent}", self.prefix_words)
        question = words(f"{self.seed} {agent} asks {round_number}", self.question_words)
        return [{"role": "system", "content": prefix}, {"role": "user", "content": question}]

    def claims(self, running: int) -> dict[str, int]:
        """What is true: the next agent is one step away."""
        return {f"a{n}": (n - running) % self.agents for n in range(self.agents)}


def reversed_claims(ring: Ring) -> Claims:
    """Each call claims that the ring runs the other way round."""
    return lambda running: {f"a{n}": (running - n) % ring.agents for n in range(ring.agents)}


def shuffled_claims(ring: Ring, seed: int) -> Claims:
    """Each call claims a random order, in which the agent called next is never the next."""
    rng = random.Random(seed)

    def claims(running: int) -> dict[str, int]:
        order = [n for n in range(ring.agents) if n != running]
        rng.shuffle(order)
        if order[0] == (running + 1) % ring.agents:
            order.append(order.pop(0))
        return {f"a{running}": 0, **{f"a{n}": steps for steps, n in enumerate(order, start=1)}}

    return claims


@dataclass(frozen=True, slots=True)
class Call:
    """One agent's call. ``round`` 0 is cold: every prompt is new to the cache."""

    agent: str
    round: int
    reply: Reply

    def row(self) -> dict[str, Any]:
        """The call as it is written down; token ids as a hash only."""
        row = asdict(self.reply)
        for name in ("text", "prompt_ids", "output_ids"):
            del row[name]
        return {"agent": self.agent, "round": self.round, **row, "output": self.reply.output_hash}


def fixed_prefix_tokens(calls: Iterable[Call]) -> dict[str, int]:
    """Tokens with which all of an agent's prompts begin."""
    prompts: defaultdict[str, list[tuple[int, ...]]] = defaultdict(list)
    for call in calls:
        prompts[call.agent].append(call.reply.prompt_ids)
    return {agent: _shared(ids) for agent, ids in prompts.items()}


def _shared(prompts: Sequence[Sequence[int]]) -> int:
    length = 0
    for tokens in zip(*prompts, strict=False):
        if len(set(tokens)) > 1:
            break
        length += 1
    return length


def served_from_device(reply: Reply, fixed_tokens: int) -> bool:
    """Whether the agent's fixed prefix, but for a page, was on the device before it was needed."""
    return (
        reply.host_tokens == 0
        and reply.device_tokens >= SERVED_FROM_DEVICE * reply.cached_tokens
        and reply.cached_tokens >= fixed_tokens - PAGE_TOKENS
    )


def summarize(calls: Sequence[Call]) -> dict[str, Any]:
    """Hit rate, tiers and times of all but the cold calls.

    Raises:
        ValueError: there are none.
    """
    fixed = fixed_prefix_tokens(calls)
    measured = [call for call in calls if call.round > 0]
    replies = [call.reply for call in measured]
    ttft_s = [reply.ttft_s for reply in replies]
    served = [served_from_device(call.reply, fixed[call.agent]) for call in measured]
    return {
        "ttft_p50_s": percentile(ttft_s, 50),
        "ttft_p95_s": percentile(ttft_s, 95),
        "ttft_max_s": max(ttft_s),
        "calls": len(measured),
        "hit_rate": sum(r.cached_tokens for r in replies) / sum(r.prompt_tokens for r in replies),
        "served_from_device": sum(served) / len(served),
        "prompt_tokens": sum(reply.prompt_tokens for reply in replies),
        "device_tokens": sum(reply.device_tokens for reply in replies),
        "host_tokens": sum(reply.host_tokens for reply in replies),
        "storage_tokens": sum(reply.storage_tokens for reply in replies),
        "fixed_prefix_tokens": fixed,
    }


def differences(arms: Mapping[str, Sequence[Call]]) -> list[dict[str, Any]]:
    """Calls that an arm answered otherwise than the first arm did, or did not make."""
    outputs = {
        name: {(call.round, call.agent): call.reply.output_hash for call in calls}
        for name, calls in arms.items()
    }
    first = next(iter(outputs.values()), {})
    return [
        {"arm": name, "round": key[0], "agent": key[1]}
        for name, answers in outputs.items()
        for key in sorted(first.keys() | answers.keys())
        if answers.get(key) != first.get(key)
    ]


def prefetch_figures(
    before: Mapping[str, float], after: Mapping[str, float]
) -> dict[str, float] | None:
    """What the plugin counted between two readings of its metrics; None without the plugin."""
    return counted_figures({name: after[name] - before.get(name, 0.0) for name in after})
