from __future__ import annotations

import json
from pathlib import Path

import pytest

from kvflow.cli.main import main
from kvflow.workload import read_trace

REQUEST = {"timestamp": 500, "input_length": 600, "output_length": 5, "hash_ids": [1, 2]}


def test_a_trace_is_made(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, target = tmp_path / "toolagent.jsonl", tmp_path / "trace.jsonl"
    source.write_text(json.dumps(REQUEST) + "\n")

    assert main(["convert-trace", "mooncake", str(source), str(target)]) == 0

    assert capsys.readouterr().out == f"1 workflows written to {target}\n"
    trace = read_trace(target)
    assert trace.name == "toolagent"
    assert [workflow.arrival_s for workflow in trace.workflows()] == [0.5]


def test_a_wrong_line_is_one_clear_message(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, target = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text(json.dumps(REQUEST | {"hash_ids": []}) + "\n")

    assert main(["convert-trace", "mooncake", str(source), str(target)]) == 2

    assert f"kvflow: {source} line 1.hash_ids: " in capsys.readouterr().err
    assert not target.exists()


def test_a_format_that_is_not_there(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["convert-trace", "csv", "a", "b"]) == 2
    assert "format: 'csv' is unknown; use one of mooncake, otel, recording" in (
        capsys.readouterr().err
    )
