"""``kvflow convert-trace``: make a trace of a recording, or of another system's trace."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, cast

import typer

from kvflow.workload.converters import FORMATS, TraceFormat, convert
from kvflow.workload.trace import write_trace

__all__ = ["convert_trace"]


def convert_trace(
    trace_format: Annotated[
        str, typer.Argument(metavar="FORMAT", help=f"What INPUT is: {', '.join(FORMATS)}.")
    ],
    source: Annotated[Path, typer.Argument(metavar="INPUT", help="File to read.")],
    target: Annotated[Path, typer.Argument(metavar="OUTPUT", help="Trace file to write.")],
) -> None:
    """Make a trace that `kvflow bench` and `kvflow simulate` replay.

    FORMAT is `recording` for what `kvflow serve --record` wrote, `mooncake` for Mooncake's public
    traces, `otel` for OpenTelemetry spans of model calls (OTLP JSON lines).
    """
    workflows = convert(source, cast(TraceFormat, trace_format))
    count = write_trace(target, workflows, name=source.stem)
    typer.echo(f"{count} workflows written to {target}")
