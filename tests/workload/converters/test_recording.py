from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from kvflow.errors import InvalidInputError
from kvflow.workload.converters import convert

HEADER = {
    "type": "header",
    "format": "kvflow-recording",
    "version": 1,
    "started_unix_s": 1.7e9,
}


def created(at_s: float, workflow_id: str = "w") -> dict[str, Any]:
    return {
        "type": "workflow",
        "at_s": at_s,
        "workflow_id": workflow_id,
        "client_id": "c",
        "agents": [{"agent_id": "a", "fixed_prefix_tokens": 300}, {"agent_id": "b"}],
        "edges": [{"source": "a", "target": "b"}],
        "entry": ["a"],
    }


def events(at_s: float, *given: tuple[str, str] | dict[str, Any], workflow_id: str = "w") -> Any:
    return {
        "type": "events",
        "at_s": at_s,
        "workflow_id": workflow_id,
        "events": [
            one if isinstance(one, dict) else {"type": f"step_{one[0]}", "agent_id": one[1]}
            for one in given
        ],
    }


def closed(at_s: float, workflow_id: str = "w") -> dict[str, Any]:
    return {"type": "closed", "at_s": at_s, "workflow_id": workflow_id, "reason": "deleted"}


def file(path: Path, *lines: Any) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def finished(agent_id: str, **counts: int) -> dict[str, Any]:
    return {"type": "step_finished", "agent_id": agent_id, **counts}


def test_steps_become_calls(tmp_path: Path) -> None:
    path = file(
        tmp_path / "r",
        HEADER,
        created(1.0),
        events(1.5, ("started", "a")),
        # One report of several events: what counts is their order, not their time.
        events(3.0, finished("a", prompt_tokens=350, output_tokens=9), ("started", "b")),
        events(4.0, ("finished", "b")),
        closed(5.0),
    )
    (workflow,) = convert(path, "recording")
    assert (workflow.client_id, workflow.arrival_s) == ("c", 1.0)
    first, second = workflow.calls
    assert (first.after, first.pause_s, second.after, second.pause_s) == ((), 0.5, (0,), 0.0)
    assert [piece.tokens for piece in first.prompt] == [300, 50]
    assert (first.fixed_pieces, first.answer.tokens) == (1, 9)
    # Nothing is known of the second: the defaults.
    assert [piece.tokens for piece in second.prompt] == [1024, 256]
    assert second.answer.tokens == 128


def test_an_id_in_use_again_and_a_service_started_again(tmp_path: Path) -> None:
    path = file(
        tmp_path / "r",
        HEADER,
        created(1.0),
        events(1.0, ("started", "a"), finished("a")),
        closed(2.0),
        created(3.0),
        events(4.0, ("started", "a")),
        HEADER,
        events(0.5, finished("a")),
        created(1.0),
        events(1.0, ("started", "a"), finished("a", prompt_tokens=20)),
    )
    workflows = list(convert(path, "recording"))
    assert [workflow.arrival_s for workflow in workflows] == [1.0, 3.0, 5.0]
    keys = [w.calls[0].prompt[-1].key for w in workflows]
    assert len(set(keys)) == 3
    # Shorter than the fixed prefix it should begin with, so it does not.
    assert workflows[2].calls[0].fixed_pieces == 0
    assert workflows[2].calls[0].prompt_tokens == 20


def test_lines_that_were_dropped_are_missed_by_nobody(tmp_path: Path) -> None:
    path = file(
        tmp_path / "r",
        HEADER,
        events(0.1, ("started", "a"), workflow_id="unknown"),
        created(1.0, "empty"),
        created(1.0),
        events(1.0, finished("a"), ("started", "b")),
    )
    (workflow,) = convert(path, "recording")
    assert [call.agent_id for call in workflow.calls] == ["b"]


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ([created(0.0)], "line 1: is not the header of a recording"),
        ([HEADER, {**created(0.0), "type": "other"}], "line 2: "),
        ([HEADER, {**created(0.0), "entry": ["z"]}], "line 2.entry[0]: no agent has agent_id 'z'"),
        ([HEADER, events(0.0, {"type": "step_ended", "agent_id": "a"})], "line 2.events.events[0]"),
    ],
)
def test_errors_name_line_and_field(tmp_path: Path, lines: Any, words: str) -> None:
    with pytest.raises(InvalidInputError) as caught:
        list(convert(file(tmp_path / "r", *lines), "recording"))
    assert words in str(caught.value)
