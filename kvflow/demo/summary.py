"""What the calls of an arm amount to, and what the arms have in common. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Final

from kvflow.demo.arms import Arm
from kvflow.demo.workflow import CallRecord

__all__ = [
    "ArmResult",
    "Comparison",
    "DemoResult",
    "Difference",
    "PrefetchedTokens",
    "percentile",
]

FIRST_WARM_ROUND = 2
"""In the first round every prompt is new to the cache, whatever its order."""

_PREFETCH_SAMPLES: Final = (
    'kvflow_prefetched_tokens_total{copy="load"}',
    *(
        f'kvflow_prefetch_outcome_tokens_total{{outcome="{outcome}"}}'
        for outcome in ("used", "wasted", "late")
    ),
)


def percentile(values: Sequence[float], percent: float) -> float:
    """The value below which ``percent`` of the values lie, interpolated between neighbours.

    Raises:
        ValueError: there are no values.
    """
    if not values:
        raise ValueError("a percentile of no values")
    ordered = sorted(values)
    position = (len(ordered) - 1) * percent / 100
    below = int(position)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (position - below)


@dataclass(frozen=True, slots=True)
class PrefetchedTokens:
    """What the plugin counted from the engine's start on.

    Attributes:
        loaded: copied from host to device ahead of a call.
        used: read by a call, once or more often.
        wasted: evicted before a call read them. What is neither used nor wasted still waits.
        late: still on their way when a call needed them; they are among those used.
    """

    loaded: int
    used: int
    wasted: int
    late: int


@dataclass(frozen=True, slots=True)
class ArmResult:
    """One arm's run.

    Attributes:
        optimal_hits: per call, the prompt tokens that a clairvoyant cache of all tiers together
            would have found; None if that could not be worked out.
        mirrored_hits: the same for a cache of the host tier's size, which is about what is within
            reach where the host keeps a copy of what is on the device; None without a host tier.
        wall_s: from the first call to the end of the last; the engine's start is not in it.
        engine_flags: SGLang's command line.
        kvflow_metrics: the plugin's own figures at the end; empty without KVFlow.
        steps_reported, mispredictions: what the service knows of the run; None without KVFlow.
    """

    arm: Arm
    records: Sequence[CallRecord]
    optimal_hits: Sequence[int] | None
    wall_s: float
    engine_start_s: float
    engine_flags: Sequence[str]
    mirrored_hits: Sequence[int] | None = None
    kvflow_metrics: Mapping[str, float] = field(default_factory=dict)
    steps_reported: int | None = None
    mispredictions: int | None = None

    @property
    def rounds(self) -> int:
        return max(record.round for record in self.records)

    def hit_rate(self, first_round: int = FIRST_WARM_ROUND, last_round: int | None = None) -> float:
        """Share of the prompt tokens of these rounds that were found in cache."""
        hits = [record.answer.cached_tokens for record in self.records]
        return self._share(hits, first_round, last_round)

    def optimal_hit_rate(
        self, first_round: int = FIRST_WARM_ROUND, last_round: int | None = None
    ) -> float | None:
        """The share for ``optimal_hits``; None if they are not known."""
        return self._known_share(self.optimal_hits, first_round, last_round)

    def mirrored_hit_rate(
        self, first_round: int = FIRST_WARM_ROUND, last_round: int | None = None
    ) -> float | None:
        """The share for ``mirrored_hits``; None if they are not known."""
        return self._known_share(self.mirrored_hits, first_round, last_round)

    def served_from_device(self, first_round: int = FIRST_WARM_ROUND) -> float:
        """Share of the calls from ``first_round`` on that hit and loaded nothing from the host.

        A call that hits nothing is not among them, one that hits a part of its prompt is.
        """
        answers = [one.answer for one in self.records if one.round >= first_round]
        served = [one.cached_tokens > 0 and one.host_tokens == 0 for one in answers]
        return sum(served) / len(served)

    def device_share(self, first_round: int = FIRST_WARM_ROUND) -> float | None:
        """Share of the cached tokens that were on the device already; None if none were cached."""
        answers = [one.answer for one in self.records if one.round >= first_round]
        cached = sum(one.cached_tokens for one in answers)
        return 1 - sum(one.host_tokens for one in answers) / cached if cached else None

    @property
    def prefetched(self) -> PrefetchedTokens | None:
        """None in an arm without prefetch, and where the engine does not tell."""
        counted = [self.kvflow_metrics.get(name) for name in _PREFETCH_SAMPLES]
        known = [int(tokens) for tokens in counted if tokens is not None]
        if not self.arm.prefetch or len(known) < len(counted):
            return None
        return PrefetchedTokens(*known)

    def ttft_s(self, percent: float, first_round: int = FIRST_WARM_ROUND) -> float:
        """A percentile of the time to first token over the calls from ``first_round`` on."""
        times = [one.answer.ttft_s for one in self.records if one.round >= first_round]
        return percentile(times, percent)

    def round_wall_s(self, number: int) -> float:
        """From the first call of a round to the end of its last."""
        calls = [record for record in self.records if record.round == number]
        return calls[-1].started_s + calls[-1].answer.total_s - calls[0].started_s

    def _known_share(
        self, hits: Sequence[int] | None, first_round: int, last_round: int | None
    ) -> float | None:
        return None if hits is None else self._share(hits, first_round, last_round)

    def _share(self, hits: Sequence[int], first_round: int, last_round: int | None) -> float:
        counted = [
            (hit, record.answer.prompt_tokens)
            for hit, record in zip(hits, self.records, strict=True)
            if first_round <= record.round <= (last_round or self.rounds)
        ]
        return sum(hit for hit, _ in counted) / sum(tokens for _, tokens in counted)


@dataclass(frozen=True, slots=True)
class Comparison:
    """KVFlow against stock SGLang in one setting. Ratios above 1 are in KVFlow's favour."""

    stock: ArmResult
    kvflow: ArmResult

    @property
    def ttft_p50_ratio(self) -> float:
        return self.stock.ttft_s(50) / self.kvflow.ttft_s(50)

    @property
    def ttft_p95_ratio(self) -> float:
        return self.stock.ttft_s(95) / self.kvflow.ttft_s(95)

    @property
    def wall_ratio(self) -> float:
        return self.stock.wall_s / self.kvflow.wall_s


@dataclass(frozen=True, slots=True)
class Difference:
    """A call that one arm answered otherwise than the first arm did."""

    round: int
    agent_id: str
    arm: str
    first_arm: str


@dataclass(frozen=True, slots=True)
class DemoResult:
    """Everything the demo found out. ``started_at`` is UTC in ISO 8601."""

    arms: Sequence[ArmResult]
    versions: Mapping[str, str]
    hardware: Mapping[str, object]
    started_at: str
    elapsed_s: float

    @property
    def comparisons(self) -> tuple[Comparison, ...]:
        """One per KVFlow arm, in their order, with the stock arm of its setting if that ran."""
        stock = {one.arm.setting.name: one for one in self.arms if not one.arm.uses_kvflow}
        return tuple(
            Comparison(stock[one.arm.setting.name], one)
            for one in self.arms
            if one.arm.uses_kvflow and one.arm.setting.name in stock
        )

    @property
    def differences(self) -> tuple[Difference, ...]:
        """Where answers differ from the first arm's, token by token, in the order of the calls."""
        first, *others = self.arms
        return tuple(
            Difference(mine.round, mine.agent_id, other.arm.name, first.arm.name)
            for other in others
            for mine, theirs in zip(first.records, other.records, strict=True)
            if mine.answer.output_hash != theirs.answer.output_hash
        )

    @property
    def outputs_identical(self) -> bool | None:
        """Whether all arms gave the same answers to all calls; None if only one arm ran."""
        return None if len(self.arms) < 2 else not self.differences

    @property
    def prompt_tokens_median(self) -> float:
        """Length of a call's prompt."""
        return median(record.answer.prompt_tokens for record in self.arms[0].records)
