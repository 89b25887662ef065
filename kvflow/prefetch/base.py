"""What the prefetch planner reads and what it answers."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import Generic, Literal, NamedTuple, TypeVar

__all__ = [
    "Candidate",
    "Link",
    "Place",
    "Plan",
    "PlannedCopy",
    "PlannerLimits",
    "PlannerView",
    "Refusal",
    "Stretch",
]

K = TypeVar("K", bound=Hashable)

Place = Literal["device", "loading", "host", "fetching", "storage", "nowhere"]
"""Where a stretch of KV is, nearest to use first.

* ``device``: on the device;
* ``loading``: on the host, a copy to the device is under way;
* ``host``: on the host;
* ``fetching``: in storage, a copy to the host is under way;
* ``storage``: in storage;
* ``nowhere``: has to be computed.
"""

Refusal = Literal["late", "no_room", "request_first", "in_flight_limit", "too_small", "no_slot"]
"""Why a candidate that is near enough gets no copy now.

* ``no_slot``: the engine takes no further load at present;
* ``request_first``: a waiting request needs the link, and the link is FIFO;
* ``late``: too little would arrive before the agent is called;
* ``in_flight_limit``: enough is under way already;
* ``no_room``: it would displace what is needed as soon or sooner;
* ``too_small``: not worth a copy of its own.
"""


class Stretch(NamedTuple):
    """``tokens`` consecutive tokens of a prefix that are all in one place."""

    tokens: int
    place: Place


@dataclass(frozen=True, slots=True)
class Candidate(Generic[K]):
    """A prefix that an agent is going to read.

    Attributes:
        key: identity of the prefix, unique among the candidates of one plan.
        steps: steps-to-execution of the agent, at least 1.
        stretches: the prefix from the root on, without gaps. All but the last are whole pages.
        due_in_s: estimated seconds until the agent is called; None if there is no estimate.
        probability: that this agent runs next among the alternatives of its branch; 1 if unknown.
    """

    key: K
    steps: float
    stretches: tuple[Stretch, ...]
    due_in_s: float | None = None
    probability: float = 1.0


@dataclass(frozen=True, slots=True)
class Link:
    """How fast something handles tokens: a copy over a link, or a prefill.

    Attributes:
        tokens_per_s: throughput, above 0.
        latency_s: what any amount takes in addition.
    """

    tokens_per_s: float
    latency_s: float = 0.0

    def seconds(self, tokens: int) -> float:
        """How long ``tokens`` take; nothing takes no time."""
        return self.latency_s + tokens / self.tokens_per_s if tokens > 0 else 0.0

    def tokens_within(self, seconds: float) -> int:
        """How many tokens are done after ``seconds``, which must be finite."""
        return max(0, math.floor((seconds - self.latency_s) * self.tokens_per_s))


@dataclass(frozen=True, slots=True)
class PlannerLimits:
    """How far ahead and how much may be prefetched.

    Attributes:
        page_tokens: size of a page; only whole pages are copied.
        max_in_flight_tokens: device loads submitted and not yet arrived, including planned ones.
        max_fetching_tokens: fetches submitted and not yet arrived, including planned ones.
        chunk_tokens: largest single device load, at least a page. A request's own load waits for
            at most this much more.
        min_tokens: a load cut to less than this isn't worth it, unless it completes what can be
            loaded of the prefix.
        load_horizon_steps: agents at most this far are loaded whatever their due time.
        fetch_horizon_steps: agents at most this far are fetched whatever their due time.
        safety: farther agents only when due within this many times the time the copy takes.

    Raises:
        ValueError: a page is smaller than a token, or a chunk smaller than a page.
    """

    page_tokens: int
    max_in_flight_tokens: int = 8192
    max_fetching_tokens: int = 32768
    chunk_tokens: int = 1024
    min_tokens: int = 64
    load_horizon_steps: int = 1
    fetch_horizon_steps: int = 3
    safety: float = 2.0

    def __post_init__(self) -> None:
        if not 1 <= self.page_tokens <= self.chunk_tokens:
            raise ValueError(
                f"a chunk of {self.chunk_tokens} tokens holds no page of {self.page_tokens}"
            )


@dataclass(frozen=True, slots=True)
class PlannerView:
    """What is the case when a plan is made.

    Attributes:
        load_link: host to device, None if not measured yet; then arrival isn't judged.
        fetch_link: storage to host, likewise.
        loading_tokens: device loads under way.
        fetching_tokens: fetches under way.
        request_load_waiting: whether a waiting request needs the load link.
        load_slot_free: whether the engine can take a load now.
    """

    load_link: Link | None
    fetch_link: Link | None
    loading_tokens: int
    fetching_tokens: int
    request_load_waiting: bool
    load_slot_free: bool


@dataclass(frozen=True, slots=True)
class PlannedCopy(Generic[K]):
    """One copy: the tokens of a prefix from ``start_tokens`` up to ``end_tokens`` (exclusive).

    Both are offsets from the root.
    """

    key: K
    start_tokens: int
    end_tokens: int

    @property
    def tokens(self) -> int:
        """How much is copied."""
        return self.end_tokens - self.start_tokens


@dataclass(frozen=True, slots=True)
class Plan(Generic[K]):
    """What to copy now, the most urgent first.

    Attributes:
        loads: host to device, one at most.
        fetches: storage to host.
        refusals: why a candidate near enough was refused. A key is here at most once, with the
            reason for its load if both were refused, and may have the other copy planned.
    """

    loads: tuple[PlannedCopy[K], ...]
    fetches: tuple[PlannedCopy[K], ...]
    refusals: Mapping[K, Refusal]
