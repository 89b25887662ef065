"""OpenTelemetry's own in-memory exporter, and a provider that writes to it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from tests.server.running import eventually

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import ReadableSpan, TracerProvider

__all__ = ["MemorySpans", "parent_of", "place_of"]


class MemorySpans:
    """Finished spans by name. Needs OpenTelemetry's SDK."""

    def __init__(self) -> None:
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import SimpleSpanProcessor
        from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

        self._memory = InMemorySpanExporter()
        self.provider: TracerProvider = TracerProvider(shutdown_on_exit=False)
        self.provider.add_span_processor(SimpleSpanProcessor(self._memory))

    def all(self) -> list[ReadableSpan]:
        return list(self._memory.get_finished_spans())

    def named(self, name: str) -> list[ReadableSpan]:
        return [span for span in self.all() if span.name == name]

    def one(self, name: str) -> ReadableSpan:
        """The only span with this name; waits for it."""
        eventually(lambda: len(self.named(name)) > 0)
        (span,) = self.named(name)
        return span

    def wait(self, condition: Callable[[list[ReadableSpan]], bool]) -> None:
        eventually(lambda: condition(self.all()))


def parent_of(span: ReadableSpan) -> tuple[int, int] | None:
    return None if span.parent is None else (span.parent.trace_id, span.parent.span_id)


def place_of(span: ReadableSpan) -> tuple[int, int]:
    assert span.context is not None
    return (span.context.trace_id, span.context.span_id)
