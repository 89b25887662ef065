"""Feeds the trace recorder from the scheduler: which request is where, and when."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from typing import Any

from kvflow.sglang_plugin.chrome_trace import TraceOnDemand
from kvflow.sglang_plugin.metadata import parse_metadata
from kvflow.sglang_plugin.settings import PluginSettings
from kvflow.sglang_plugin.spans import SpanExporter
from kvflow.sglang_plugin.trace import ClockAnchor, TraceRecorder

__all__ = ["Timelines"]


class Timelines:
    """The timelines of one engine's requests; only the first rank keeps them.

    What SGLang calls things is read here and nowhere else, for 0.5.17 to 0.5.23.
    """

    def __init__(self, recorder: TraceRecorder, on_demand: TraceOnDemand | None) -> None:
        self.recorder = recorder
        self._on_demand = on_demand
        self._admitted: set[str] = set()
        self._begun: set[str] = set()

    @classmethod
    def of(cls, settings: PluginSettings) -> Timelines | None:
        """Timelines if somebody wants them: a trace folder, or OpenTelemetry spans."""
        anchor = ClockAnchor(time.monotonic(), time.time_ns())
        exporter = SpanExporter.from_env(os.environ, anchor, settings.engine_id)
        if exporter is None and settings.trace_dir is None:
            return None
        recorder = TraceRecorder(
            anchor=anchor, on_finished=None if exporter is None else exporter.export
        )
        on_demand = (
            None
            if settings.trace_dir is None
            else TraceOnDemand(settings.trace_dir, settings.engine_id, recorder)
        )
        return cls(recorder, on_demand)

    @property
    def polls(self) -> bool:
        """Whether ``poll`` has anything to look for."""
        return self._on_demand is not None

    def poll(self, now_s: float) -> None:
        """Write a trace if one was asked for. To be called about once a second."""
        if self._on_demand is not None:
            self._on_demand.poll(now_s)

    def arrived(self, request: Any, custom_params: object) -> None:
        """A request came in."""
        rid = getattr(request, "rid", None)
        if not isinstance(rid, str):
            return
        metadata = parse_metadata(custom_params)
        self.recorder.queued(
            rid,
            time.monotonic(),
            None if metadata is None else (metadata.client_id, metadata.workflow_id),
            None if metadata is None else metadata.agent_id,
            traceparent=None if metadata is None else metadata.traceparent,
        )

    def held(self, newly_held: Iterable[str], released: Iterable[str]) -> None:
        """Requests are passed over from now on, or are so no longer."""
        now_s = time.monotonic()
        for rid in newly_held:
            self.recorder.skipped(rid, now_s)
        for rid in released:
            self.recorder.released(rid, now_s)

    def batch_formed(self, batch: Any, *, overlapped: bool) -> None:
        """Requests enter a batch."""
        now_s = time.monotonic()
        for req in batch.reqs:
            if req.rid in self._admitted:
                continue
            self._admitted.add(req.rid)
            host_tokens = int(getattr(req, "host_loaded_length", req.host_hit_length))
            prefix_tokens = getattr(req, "prefix_len", None)
            if prefix_tokens is None:
                prefix_tokens = len(req.prefix_indices)
            self.recorder.admitted(
                req.rid,
                now_s,
                prompt_tokens=len(req.origin_input_ids),
                device_tokens=int(prefix_tokens) - host_tokens,
                host_tokens=host_tokens,
                overlapped=overlapped,
            )

    def batch_done(self, batch: Any) -> None:
        """A batch's results are in."""
        now_s = time.monotonic()
        for req in batch.reqs:
            if req.rid not in self._admitted:
                continue
            if len(req.output_ids) and req.rid not in self._begun:
                self._begun.add(req.rid)
                self.recorder.first_token(req.rid, now_s)
            if req.finished():
                self._admitted.discard(req.rid)
                self._begun.discard(req.rid)
                self.recorder.finished(req.rid, now_s, len(req.output_ids))
