"""Which formats there are."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Final, Literal, get_args

from kvflow.errors import InvalidInputError
from kvflow.workload.base import WorkloadWorkflow
from kvflow.workload.converters.mooncake import read_mooncake
from kvflow.workload.converters.otel import read_otel
from kvflow.workload.converters.recording import read_recording

__all__ = ["FORMATS", "TraceFormat", "convert"]

TraceFormat = Literal["mooncake", "otel", "recording"]
"""* ``mooncake``: requests with the hashes of their prompts' blocks, as Mooncake's public traces;
* ``otel``: OpenTelemetry spans by the GenAI conventions, in an OTLP JSON file;
* ``recording``: what ``kvflow serve --record`` writes.
"""

FORMATS: Final[tuple[TraceFormat, ...]] = get_args(TraceFormat)

_READERS: Final[Mapping[TraceFormat, Callable[[Path], Iterator[WorkloadWorkflow]]]] = {
    "mooncake": read_mooncake,
    "otel": read_otel,
    "recording": read_recording,
}


def convert(path: Path, trace_format: TraceFormat) -> Iterator[WorkloadWorkflow]:
    """Yield the workflows of a file, in the order in which they begin.

    Raises:
        InvalidInputError: the format is unknown, the file cannot be read or has no calls, or a line
            of it is wrong.
    """
    reader = _READERS.get(trace_format)
    if reader is None:
        raise InvalidInputError(
            ["format"], f"{trace_format!r} is unknown; use one of {', '.join(FORMATS)}"
        )
    return _some(path, reader(path))


def _some(path: Path, workflows: Iterator[WorkloadWorkflow]) -> Iterator[WorkloadWorkflow]:
    first = next(workflows, None)
    if first is None:
        raise InvalidInputError([str(path)], "has no call in it")
    yield first
    yield from workflows
