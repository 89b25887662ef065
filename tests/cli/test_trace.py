"""``kvflow trace``, with an engine's side that answers, and without."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from kvflow.cli.main import main
from kvflow.sglang_plugin.chrome_trace import TraceOnDemand
from kvflow.sglang_plugin.trace import TraceRecorder


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KVFLOW_TRACE_DIR", raising=False)
    monkeypatch.setenv("KVFLOW_ENGINE_ID", "e1")


@contextmanager
def engine(folder: Path, engine_id: str = "e1") -> Iterator[None]:
    """What the scheduler does each step, in a thread."""
    stop = threading.Event()
    on_demand = TraceOnDemand(folder, engine_id, TraceRecorder())

    def steps() -> None:
        while not stop.wait(0.01):
            on_demand.poll(0)

    thread = threading.Thread(target=steps)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def engine_of(path: Path) -> str:
    return str(json.loads(path.read_text())["otherData"]["engine_id"])


def test_says_where_it_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with engine(tmp_path):
        for _ in range(2):
            assert main(["trace", "--dir", str(tmp_path)]) == 0
            captured = capsys.readouterr()
            assert captured.out == f"{tmp_path}/e1.trace.json\n"
            assert "ui.perfetto.dev" in captured.err
    assert engine_of(tmp_path / "e1.trace.json") == "e1"


def test_folder_from_the_environment_and_engine_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("KVFLOW_TRACE_DIR", str(tmp_path))
    output = tmp_path / "mine.json"
    with engine(tmp_path, "e/2"):
        assert main(["trace", "--engine-id", "e/2", "--output", str(output)]) == 0
    assert capsys.readouterr().out == f"{output}\n"
    assert engine_of(output) == "e/2"


def test_no_engine_answers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with engine(tmp_path, "other"):
        assert main(["trace", "--dir", str(tmp_path), "--timeout-s", "0"]) == 1
    text = capsys.readouterr().err
    assert "no engine 'e1' answered within 0 s" in text
    for word in (f"KVFLOW_TRACE_DIR={tmp_path}", "--engine-id", "--timeout-s"):
        assert word in text
    assert list(tmp_path.iterdir()) == []


def test_an_engine_that_cannot_write(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "e1.trace.json").mkdir()
    with engine(tmp_path):
        assert main(["trace", "--dir", str(tmp_path)]) == 1
    assert "read why in the engine's log" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "--dir: is missing"),
        (["--dir", "nowhere"], "--dir: 'nowhere' is not a folder here"),
        (["--dir", ".", "--output", "nowhere/t.json"], "--output: there is no folder"),
    ],
)
def test_wrong_usage(
    arguments: list[str],
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["trace", *arguments]) == 2
    assert words in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_an_output_that_cannot_be_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with engine(tmp_path):
        assert main(["trace", "--dir", str(tmp_path), "--output", str(tmp_path)]) == 2
    text = capsys.readouterr().err
    assert "--output: cannot be written" in text
    assert f"the trace is in {tmp_path}/e1.trace.json" in text
