"""Trace files: workloads written down call by call, read a line at a time."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

from kvflow.errors import InvalidInputError
from kvflow.graph import GraphPool
from kvflow.workload.base import Piece, Workload, WorkloadCall, WorkloadWorkflow
from kvflow.workload.graph_lines import graph_in, written_graph
from kvflow.workload.lines import parse_line, place, text_lines
from kvflow.workload.trace_format import (
    TRACE_FORMAT,
    TraceCall,
    TraceHeader,
    TraceWorkflow,
)

__all__ = ["read_trace", "write_trace"]


def read_trace(path: Path) -> Workload:
    """Return the workload of a trace file.

    The header is read now, the rest line by line whenever the workflows are asked for.

    Raises:
        InvalidInputError: it cannot be read, or a line is wrong (names the line and the field);
            for all lines but the header, while the workflows are taken.
    """
    with closing(text_lines(path)) as lines:
        number, first = next(lines, (1, ""))
    header = parse_line(TraceHeader, path, number, first)
    return Workload(
        name=header.name,
        concurrency=header.concurrency,
        workflows=lambda: _workflows(path, header),
        warm_up_calls=header.warm_up_calls,
    )


def write_trace(
    path: Path,
    workflows: Iterable[WorkloadWorkflow],
    *,
    name: str,
    concurrency: int | None = None,
    warm_up_calls: int = 0,
) -> int:
    """Write a trace file and return how many workflows it has.

    The file is there once all are written; on any error, what was there before stays.

    Raises:
        InvalidInputError: it cannot be written.
    """
    header = TraceHeader(
        format=TRACE_FORMAT,
        version=1,
        name=name,
        concurrency=concurrency,
        warm_up_calls=warm_up_calls,
    )
    count = 0
    unfinished = path.with_name(f"{path.name}.part")
    try:
        with unfinished.open("w", encoding="utf-8") as file:
            file.write(header.model_dump_json() + "\n")
            for workflow in workflows:
                file.write(json.dumps(_line(workflow), separators=(",", ":")) + "\n")
                count += 1
        unfinished.replace(path)
    except OSError as error:
        raise InvalidInputError([str(path)], f"cannot be written: {error.strerror}") from error
    finally:
        unfinished.unlink(missing_ok=True)
    return count


def _line(workflow: WorkloadWorkflow) -> dict[str, Any]:
    graph = workflow.graph
    return {
        "workflow_id": workflow.workflow_id,
        "client_id": workflow.client_id,
        "arrival_s": workflow.arrival_s,
        "graph": None if graph is None else written_graph(graph),
        "calls": [
            {
                "agent_id": call.agent_id,
                "after": call.after,
                "pause_s": call.pause_s,
                "prompt": call.prompt,
                "fixed_pieces": call.fixed_pieces,
                "answer": call.answer,
            }
            for call in workflow.calls
        ],
    }


def _workflows(path: Path, header: TraceHeader) -> Iterator[WorkloadWorkflow]:
    graphs = GraphPool()
    latest_s = 0.0
    lines = text_lines(path)
    next(lines, None)
    for number, line in lines:
        here = place(path, number)
        read = parse_line(TraceWorkflow, path, number, line)
        latest_s = _check_arrival(here, read.arrival_s, latest_s, header.concurrency)
        yield WorkloadWorkflow(
            read.client_id,
            read.workflow_id,
            read.arrival_s,
            None if read.graph is None else graph_in(read.graph, [here, "graph"], graphs),
            _calls(here, read.calls),
        )


def _check_arrival(
    here: str, arrival_s: float | None, latest_s: float, concurrency: int | None
) -> float:
    if concurrency is not None:
        if arrival_s is not None:
            raise InvalidInputError(
                [here, "arrival_s"], "leave it out, as the header has concurrency"
            )
        return latest_s
    if arrival_s is None:
        raise InvalidInputError(
            [here, "arrival_s"], "is missing, and the header has no concurrency"
        )
    if arrival_s < latest_s:
        raise InvalidInputError(
            [here, "arrival_s"],
            f"is {arrival_s}, before the {latest_s} of the line above; sort the lines by it",
        )
    return arrival_s


def _calls(here: str, lines: tuple[TraceCall, ...]) -> tuple[WorkloadCall, ...]:
    lengths: dict[str, int] = {}
    calls = []
    for position, line in enumerate(lines):
        for before in line.after:
            if before >= position:
                raise InvalidInputError(
                    [here, "calls", position, "after"],
                    f"{before} is no call before this one, which is call {position}",
                )
        for key, tokens in (*line.prompt, line.answer):
            if lengths.setdefault(key, tokens) != tokens:
                raise InvalidInputError(
                    [here, "calls", position],
                    f"piece {key!r} has {tokens} tokens here and {lengths[key]} before; "
                    "a key stands for certain tokens",
                )
        calls.append(
            WorkloadCall(
                line.agent_id,
                line.after,
                line.pause_s,
                tuple(Piece(key, tokens) for key, tokens in line.prompt),
                line.fixed_pieces,
                Piece(*line.answer),
            )
        )
    return tuple(calls)
