"""What was recorded, as a file for ui.perfetto.dev, written when somebody asks for it.

Asking and answering go through a folder, since the scheduler process serves no HTTP: who asks
creates ``ENGINE.request``; the engine writes ``ENGINE.trace.json`` and then removes the request.
"""

from __future__ import annotations

import heapq
import json
import logging
import os
import zlib
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, NamedTuple
from urllib.parse import quote

from kvflow.sglang_plugin.trace import (
    ClockAnchor,
    Copy,
    RequestTimeline,
    TraceRecorder,
    stalls,
)

__all__ = ["TraceFiles", "TraceOnDemand", "chrome_trace", "pack_lanes"]

logger = logging.getLogger(__name__)

RETRY_S: Final = 60.0
_LINKS: Final = {"load": "load link", "prefetch": "load link", "fetch": "fetch link"}


def pack_lanes(spans: Sequence[tuple[int, int]]) -> list[int]:
    """A lane for each span ``(start, end)``, so that those on one lane don't overlap.

    As few lanes as there are spans at one moment, the lowest free one first; a span may begin
    where another ends. O(n log n).
    """
    lanes = [0] * len(spans)
    busy: list[tuple[int, int]] = []
    free: list[int] = []
    for position in sorted(range(len(spans)), key=lambda position: spans[position]):
        start, end = spans[position]
        while busy and busy[0][0] <= start:
            heapq.heappush(free, heapq.heappop(busy)[1])
        lane = heapq.heappop(free) if free else len(busy)
        heapq.heappush(busy, (end, lane))
        lanes[position] = lane
    return lanes


def chrome_trace(
    recorder: TraceRecorder,
    since_s: float | None = None,
    *,
    now_s: float | None = None,
    engine_id: str = "engine",
) -> dict[str, Any]:
    """What ``recorder`` holds, in Chrome's JSON trace format.

    The engine is a process; requests are packed into lanes, one below the other where they ran at
    the same time, each with its phases below it; copies are on tracks ``load link`` and
    ``fetch link``. Times are microseconds since 1970 by the recorder's anchor, so files of several
    engines can be joined.

    Args:
        recorder: the source; not changed.
        since_s: leave out what ended before, in seconds of ``time.monotonic()``.
        now_s: open requests are drawn until then, by default until the last report.
        engine_id: name of the process.
    """
    anchor = recorder.anchor
    tracks = _Tracks(engine_id)
    oldest_s = float("-inf") if since_s is None else since_s
    copies = [copy for copy in recorder.copies() if copy.end_s >= oldest_s]
    for link in dict.fromkeys(_LINKS.values()):
        of_link = [copy for copy in copies if _LINKS[copy.kind] == link]
        spans = [_span(anchor, copy.start_s, copy.end_s) for copy in of_link]
        for copy, span, track in zip(of_link, spans, tracks.add(link, spans), strict=True):
            tracks.events.append(_copy_event(copy, span, track))
    requests = [each for each in recorder.requests(now_s) if each.end_s >= oldest_s]
    spans = [_span(anchor, each.start_s, each.end_s) for each in requests]
    for timeline, span, track in zip(requests, spans, tracks.add("requests", spans), strict=True):
        tracks.events.extend(_request_events(timeline, span, anchor, track))
    return {
        "traceEvents": tracks.events,
        "displayTimeUnit": "ms",
        "otherData": {
            "producer": "kvflow",
            "engine_id": engine_id,
            "recorder_started": datetime.fromtimestamp(anchor.unix_ns / 1e9, UTC).isoformat(),
        },
    }


class _Track(NamedTuple):
    pid: int
    tid: int


class _Tracks:
    """Numbers the tracks from above to below and names them, and the engine they are of."""

    def __init__(self, engine_id: str) -> None:
        self._pid = zlib.crc32(engine_id.encode()) & 0x7FFF_FFFF
        self._count = 0
        self.events = [_metadata("process_name", _Track(self._pid, 0), name=f"engine {engine_id}")]

    def add(self, name: str, spans: Sequence[tuple[int, int]]) -> list[_Track]:
        """Make as many tracks as ``spans`` need; return that of each."""
        lanes = pack_lanes(spans)
        tracks: list[_Track] = []
        for lane in range(max(lanes, default=-1) + 1):
            self._count += 1
            track = _Track(self._pid, self._count)
            title = f"{name} {lane + 1}" if lane else name
            self.events.append(_metadata("thread_name", track, name=title))
            self.events.append(_metadata("thread_sort_index", track, sort_index=track.tid))
            tracks.append(track)
        return [tracks[lane] for lane in lanes]


def _metadata(kind: str, track: _Track, **args: str | int) -> dict[str, Any]:
    return {"ph": "M", "name": kind, "pid": track.pid, "tid": track.tid, "args": args}


def _span(anchor: ClockAnchor, start_s: float, end_s: float) -> tuple[int, int]:
    """In whole microseconds, so that what is within stays within."""
    start = anchor.unix_time_ns(start_s) // 1000
    return start, max(start, anchor.unix_time_ns(end_s) // 1000)


def _slice(
    name: str, category: str, span: tuple[int, int], track: _Track, args: dict[str, Any]
) -> dict[str, Any]:
    start, end = span
    return {
        "ph": "X",
        "name": name,
        "cat": category,
        "ts": start,
        "dur": end - start,
        "pid": track.pid,
        "tid": track.tid,
        "args": args,
    }


def _copy_event(copy: Copy, span: tuple[int, int], track: _Track) -> dict[str, Any]:
    args = {"tokens": copy.tokens, "label": copy.label}
    return _slice(f"{copy.kind} {copy.label}".strip(), copy.kind, span, track, args)


def _request_events(
    timeline: RequestTimeline, span: tuple[int, int], anchor: ClockAnchor, track: _Track
) -> Iterator[dict[str, Any]]:
    args: dict[str, Any] = {"request_id": timeline.request_id}
    for name in ("client_id", "workflow_id", "agent_id"):
        if (value := getattr(timeline, name)) is not None:
            args[name] = value
    args |= timeline.attributes
    for cause, seconds in stalls(timeline).items():
        args[f"{cause}_ms"] = round(seconds * 1e3, 3)
    if timeline.open:
        args["open"] = True
    yield _slice(timeline.agent_id or "request", "request", span, track, args)
    for phase, start_s, end_s in timeline.events:
        yield _slice(phase, "phase", _span(anchor, start_s, end_s), track, {})
    if timeline.first_token_s is not None:
        yield {
            "ph": "i",
            "s": "t",
            "name": "first token",
            "cat": "phase",
            "ts": anchor.unix_time_ns(timeline.first_token_s) // 1000,
            "pid": track.pid,
            "tid": track.tid,
        }


@dataclass(frozen=True, slots=True)
class TraceFiles:
    """The two files through which an engine is asked for its trace."""

    request: Path
    trace: Path

    @classmethod
    def of(cls, folder: Path, engine_id: str) -> TraceFiles:
        """Those of one engine; what its id has that a file name may not have is escaped."""
        name = quote(engine_id, safe="")
        return cls(folder / f"{name}.request", folder / f"{name}.trace.json")


class TraceOnDemand:
    """Writes the trace when it is asked for.

    Engines that share a folder need different ids.
    """

    def __init__(
        self, folder: str | os.PathLike[str], engine_id: str, recorder: TraceRecorder
    ) -> None:
        """Make ``folder`` if it is missing; if that fails it is logged, and nobody can ask."""
        self._folder = Path(folder)
        self._engine_id = engine_id
        self._recorder = recorder
        self._not_before_s = float("-inf")
        self.files = TraceFiles.of(self._folder, engine_id)
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            logger.warning("KVFlow: no traces, %s cannot be made: %s", self._folder, error)

    def poll(self, now_s: float) -> bool:
        """Write the trace if somebody asks for it; return whether it was written.

        Costs one look for a file while nobody asks, and 0.1 to 0.2 s for a full recorder when
        somebody does. Never raises: what goes wrong is logged, the request is removed if
        that is possible, and the next try is a minute later at the earliest.
        """
        if now_s < self._not_before_s:
            return False
        try:
            if not self.files.request.exists():
                return False
            self._write(chrome_trace(self._recorder, now_s=now_s, engine_id=self._engine_id))
            self.files.request.unlink()
        except Exception:
            logger.exception("KVFlow: the trace asked for was not written; the engine goes on")
            self._not_before_s = now_s + RETRY_S
            with suppress(OSError):
                self.files.request.unlink()
            return False
        logger.info("KVFlow: wrote %s", self.files.trace)
        return True

    def _write(self, trace: dict[str, Any]) -> None:
        # In the same folder, or it could not be put in place in one step.
        unfinished = self.files.trace.with_name(f".{self.files.trace.name}.{os.getpid()}")
        try:
            unfinished.write_text(json.dumps(trace, separators=(",", ":")))
            unfinished.replace(self.files.trace)
        finally:
            unfinished.unlink(missing_ok=True)
