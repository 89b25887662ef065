"""What happened to each request and on each link, kept in memory for a while. Pure: no clock."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final, Literal, NamedTuple

from kvflow.sglang_plugin.control import WorkflowKey

__all__ = [
    "ClockAnchor",
    "Copy",
    "CopyKind",
    "Interval",
    "Phase",
    "RequestTimeline",
    "Stall",
    "TraceRecorder",
    "stalls",
]

Phase = Literal["queued", "skipped", "loading", "waiting_for_load", "prefill", "decode"]
"""What a request is doing:

``queued`` waits for its turn or for room; ``skipped`` is passed over while its prefix is loading;
``waiting_for_load`` is in a batch whose prefill begins only after its load; ``prefill``, ``decode``
is computed; ``loading`` its load runs under its prefill, so this one lies within ``prefill``. All
others follow each other without a gap.
"""

CopyKind = Literal["load", "prefetch", "fetch"]
"""``load`` host to device for a request, ``prefetch`` host to device ahead of one, ``fetch``
storage to host."""

Stall = Literal["wait", "queue"]
"""Why a request is not computed: ``wait`` for its KV to be loaded, ``queue`` for anything else."""

DEFAULT_CAPACITY: Final = 2048
COPIES_PER_REQUEST: Final = 4
MAX_SKIPS: Final = 32
"""Intervals of one request in which it was skipped; later ones are joined to the last."""


@dataclass(frozen=True, slots=True)
class ClockAnchor:
    """One moment on both clocks.

    Attributes:
        monotonic_s: ``time.monotonic()``.
        unix_ns: ``time.time_ns()`` at that moment.
    """

    monotonic_s: float = 0.0
    unix_ns: int = 0

    def unix_time_ns(self, time_s: float) -> int:
        """Nanoseconds since 1970 of a ``time.monotonic()``."""
        return self.unix_ns + round((time_s - self.monotonic_s) * 1e9)


class Interval(NamedTuple):
    """A phase of a request, in seconds of ``time.monotonic()``."""

    phase: Phase
    start_s: float
    end_s: float


class Copy(NamedTuple):
    """One transfer, in seconds of ``time.monotonic()``."""

    kind: CopyKind
    start_s: float
    end_s: float
    tokens: int
    label: str


@dataclass(frozen=True, slots=True)
class RequestTimeline:
    """The life of one request in the engine.

    Attributes:
        start_s: when it was queued.
        end_s: when it finished; while it is ``open``, as far as is known.
        events: its phases by start, ``loading`` after the ``prefill`` it lies in; none is empty.
        first_token_s: when the first token was generated; None if there is none.
        attributes: of ``prompt_tokens``, ``device_tokens`` (of those found on the device),
            ``host_tokens`` (of those found on the host), ``overlapped``, ``output_tokens`` and
            ``aborted``, those that are known.
        open: whether it had not finished.
        traceparent: W3C trace context of whoever sent it, as it was sent.
    """

    request_id: str
    workflow_id: str | None
    agent_id: str | None
    client_id: str | None
    start_s: float
    end_s: float
    events: tuple[Interval, ...]
    first_token_s: float | None = None
    attributes: Mapping[str, int | bool] = field(default_factory=dict)
    open: bool = False
    traceparent: str | None = None


def stalls(timeline: RequestTimeline) -> dict[Stall, float]:
    """Seconds a request stood still, by cause."""
    wait_s = queue_s = 0.0
    for phase, start_s, end_s in timeline.events:
        if phase == "queued":
            queue_s += end_s - start_s
        elif phase in {"skipped", "waiting_for_load"}:
            wait_s += end_s - start_s
    return {"wait": wait_s, "queue": queue_s}


@dataclass(slots=True, eq=False)
class _Request:
    request_id: str
    workflow: WorkflowKey | None
    agent_id: str | None
    queued_s: float
    traceparent: str | None = None
    skips: list[tuple[float, float]] = field(default_factory=list)
    skipped_since_s: float | None = None
    admitted_s: float | None = None
    prompt_tokens: int = 0
    device_tokens: int = 0
    host_tokens: int = 0
    overlapped: bool = False
    load: tuple[float, float] | None = None
    first_token_s: float | None = None
    finished_s: float | None = None
    output_tokens: int = 0
    aborted: bool = False


class TraceRecorder:
    """Records requests and copies, the latest of each, and derives timelines when asked.

    Times are seconds of ``time.monotonic()`` and do not fall from call to call. What is told of a
    request that is not open (it was never queued here, has finished, or was dropped) is ignored,
    so the plugin may report without keeping account.

    Each report costs O(1) and allocates a few objects at most; memory is bounded whatever comes.
    Not thread-safe: it belongs to the scheduler thread.
    """

    def __init__(
        self,
        capacity: int = DEFAULT_CAPACITY,
        *,
        anchor: ClockAnchor | None = None,
        on_finished: Callable[[RequestTimeline], None] | None = None,
    ) -> None:
        """Keep nothing yet.

        Args:
            capacity: finished requests kept, and open ones; the oldest of each are dropped.
            anchor: for those who write wall-clock times; without it times count from 1970.
            on_finished: is given each request when it finishes; has to be quick and not to raise.
        """
        self.anchor = anchor or ClockAnchor()
        self._capacity = capacity
        self._on_finished = on_finished
        self._open: dict[str, _Request] = {}
        self._finished: deque[_Request] = deque(maxlen=capacity)
        self._copies: deque[Copy] = deque(maxlen=capacity * COPIES_PER_REQUEST)
        self._latest_s = 0.0

    def queued(
        self,
        rid: str,
        now_s: float,
        workflow: WorkflowKey | None = None,
        agent_id: str | None = None,
        *,
        traceparent: str | None = None,
    ) -> None:
        """A request came. If it is open (it was put back into the queue), as ``released``."""
        self._latest_s = now_s
        if rid in self._open:
            self.released(rid, now_s)
            return
        if len(self._open) >= self._capacity:
            del self._open[next(iter(self._open))]
        self._open[rid] = _Request(rid, workflow, agent_id, now_s, traceparent)

    def skipped(self, rid: str, now_s: float) -> None:
        """It is passed over in this step, since its prefix is loading.

        It counts as skipped from the first such step until it is admitted, released or finished.
        """
        self._latest_s = now_s
        request = self._open.get(rid)
        if request is not None and request.skipped_since_s is None and request.admitted_s is None:
            request.skipped_since_s = now_s

    def released(self, rid: str, now_s: float) -> None:
        """It is not passed over any more: if it goes on waiting, then for its turn or for room."""
        self._latest_s = now_s
        request = self._open.get(rid)
        if request is not None:
            _end_skip(request, now_s)

    def admitted(
        self,
        rid: str,
        now_s: float,
        *,
        prompt_tokens: int,
        device_tokens: int,
        host_tokens: int,
        overlapped: bool,
    ) -> None:
        """It enters a prefill batch. Only the first time counts (a long prompt enters in chunks).

        Args:
            rid: the request.
            now_s: time.
            prompt_tokens: length of its prompt.
            device_tokens: of those, found on the device.
            host_tokens: of those, found on the host and loaded for it.
            overlapped: its load runs under its prefill; else its prefill waits for the load.
        """
        self._latest_s = now_s
        request = self._open.get(rid)
        if request is None or request.admitted_s is not None:
            return
        _end_skip(request, now_s)
        request.admitted_s = now_s
        request.prompt_tokens = prompt_tokens
        request.device_tokens = device_tokens
        request.host_tokens = host_tokens
        request.overlapped = overlapped

    def first_token(self, rid: str, now_s: float) -> None:
        """Its prefill is done. Only the first time after it was admitted counts."""
        self._latest_s = now_s
        request = self._open.get(rid)
        if request is not None and request.admitted_s is not None and request.first_token_s is None:
            request.first_token_s = now_s

    def finished(self, rid: str, now_s: float, output_tokens: int, aborted: bool = False) -> None:
        """It ended, after ``output_tokens`` tokens."""
        self._latest_s = now_s
        request = self._open.pop(rid, None)
        if request is None:
            return
        _end_skip(request, now_s)
        request.finished_s = now_s
        request.output_tokens = output_tokens
        request.aborted = aborted
        self._finished.append(request)
        if self._on_finished is not None:
            self._on_finished(_timeline(request, now_s))

    def copy(self, kind: CopyKind, start_s: float, end_s: float, tokens: int, label: str) -> None:
        """A transfer ended; the latest ``4 * capacity`` are kept.

        Args:
            kind: which transfer.
            start_s: when it began.
            end_s: when it ended.
            tokens: tokens moved.
            label: for whom. If it is the id of an open request and the kind is ``load``, it shows
                in that request's timeline, too.
        """
        self._copies.append(Copy(kind, start_s, end_s, tokens, label))
        if kind == "load" and (request := self._open.get(label)) is not None:
            known = request.load
            request.load = (
                (start_s, end_s)
                if known is None
                else (min(known[0], start_s), max(known[1], end_s))
            )

    def requests(self, now_s: float | None = None) -> list[RequestTimeline]:
        """The finished requests kept, as they finished, then the open ones, as they came.

        Open ones go on until ``now_s``, by default the time of the last report.
        """
        until_s = self._latest_s if now_s is None else max(now_s, self._latest_s)
        return [_timeline(request, until_s) for request in (*self._finished, *self._open.values())]

    def copies(self) -> list[Copy]:
        """The copies kept, as they were reported."""
        return list(self._copies)


def _end_skip(request: _Request, now_s: float) -> None:
    since_s = request.skipped_since_s
    if since_s is None:
        return
    request.skipped_since_s = None
    if len(request.skips) < MAX_SKIPS:
        request.skips.append((since_s, now_s))
    else:
        request.skips[-1] = (request.skips[-1][0], now_s)


def _timeline(request: _Request, now_s: float) -> RequestTimeline:
    open_ = request.finished_s is None
    end_s = now_s if request.finished_s is None else request.finished_s
    client_id, workflow_id = request.workflow or (None, None)
    attributes: dict[str, int | bool] = {}
    if request.admitted_s is not None:
        attributes["prompt_tokens"] = request.prompt_tokens
        attributes["device_tokens"] = request.device_tokens
        attributes["host_tokens"] = request.host_tokens
        attributes["overlapped"] = request.overlapped
    if not open_:
        attributes["output_tokens"] = request.output_tokens
        attributes["aborted"] = request.aborted
    return RequestTimeline(
        request_id=request.request_id,
        workflow_id=workflow_id,
        agent_id=request.agent_id,
        client_id=client_id,
        start_s=request.queued_s,
        end_s=end_s,
        events=tuple(phase for phase in _phases(request, end_s) if phase.end_s > phase.start_s),
        first_token_s=request.first_token_s,
        attributes=attributes,
        open=open_,
        traceparent=request.traceparent,
    )


def _phases(request: _Request, end_s: float) -> list[Interval]:
    phases: list[Interval] = []
    at_s = request.queued_s
    skips = request.skips
    if request.skipped_since_s is not None:
        skips = [*skips, (request.skipped_since_s, end_s)]
    for start_s, until_s in skips:
        phases.append(Interval("queued", at_s, start_s))
        phases.append(Interval("skipped", start_s, until_s))
        at_s = until_s
    admitted_s = request.admitted_s
    if admitted_s is None:
        phases.append(Interval("queued", at_s, end_s))
        return phases
    phases.append(Interval("queued", at_s, admitted_s))
    prefilled_s = end_s if request.first_token_s is None else request.first_token_s
    load_start_s, load_end_s = request.load or (admitted_s, admitted_s)
    load_end_s = min(load_end_s, prefilled_s)
    if request.overlapped:
        phases.append(Interval("prefill", admitted_s, prefilled_s))
        phases.append(Interval("loading", max(load_start_s, admitted_s), load_end_s))
    else:
        prefill_s = max(load_end_s, admitted_s)
        phases.append(Interval("waiting_for_load", admitted_s, prefill_s))
        phases.append(Interval("prefill", prefill_s, prefilled_s))
    phases.append(Interval("decode", prefilled_s, end_s))
    return phases
