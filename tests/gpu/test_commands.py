"""The two commands as a user types them, as far as they go without an engine."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.gpu import suite
from benchmarks.gpu.plan import Step, Task, Unit
from benchmarks.gpu.results import ResultFolder
from benchmarks.gpu.units import NOMINAL
from kvflow.errors import EnvironmentProblemError

FOLDER = Path(__file__).parents[2] / "benchmarks" / "gpu"


def command(name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(FOLDER / name), *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
    )


@pytest.mark.parametrize(("name", "option"), [("pack", "--piece-mib"), ("run", "--wheels")])
def test_commands_explain_themselves(name: str, option: str) -> None:
    done = command(name, "--help")
    assert done.returncode == 0, done.stderr
    assert option in done.stdout


def test_a_dry_run_s_plan(tmp_path: Path) -> None:
    done = command("run", "--dry-run", "--pieces", "a", "--plan-only", "--output", str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert "a/as-is" in done.stdout
    assert "a/naive" in done.stdout
    assert "b/" not in done.stdout
    assert not ResultFolder(tmp_path).done()


def test_a_folder_without_packed_wheels_is_said(tmp_path: Path) -> None:
    done = command("run", "--wheels", str(tmp_path), "--output", str(tmp_path / "out"))
    assert done.returncode == 1
    assert "manifest.json cannot be read" in done.stderr


def test_a_real_run_s_plan_without_a_gpu(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert suite.main(["--plan-only", "--pieces", "c,b", "--output", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert "b/single-llama-3.1-8b/f8192-d32-o32-b1/kvflow+hicache-write-through+lru" in shown
    assert "left out b/single-qwen2.5-32b/f8192-d32-o32-b1/limit: takes " in shown


def test_without_a_gpu_nothing_is_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(suite, "visible_gpus", lambda: ())
    assert suite.main(["--output", str(tmp_path)]) == 1
    assert "no GPU is visible" in capsys.readouterr().err


@pytest.mark.parametrize("pieces", ["g", "", "a,z"])
def test_an_unknown_piece_is_refused(pieces: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        suite.main(["--pieces", pieces, "--output", "nowhere"])
    assert "name pieces of a, b, c, d, e, f" in capsys.readouterr().err


def test_what_fails_is_written_down_and_the_rest_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise EnvironmentProblemError("the engine ended", "read its log")

    monkeypatch.setattr(suite, "_make_checkpoint", broken)
    work = suite.Work(
        results=ResultFolder(tmp_path),
        output=tmp_path,
        device="cpu",
        rates=NOMINAL["cpu"],
        groups={},
        deadline_s=float("inf"),
        dry_run=True,
    )
    unit = Unit("a", "a", 0.0, (Task("a/as-is", 1.0),))
    work.run(Step(unit, unit.tasks))
    assert [one["unit"] for one in work.failed] == ["a"]
    assert "the engine ended" in work.failed[0]["error"]


def test_what_there_is_no_time_for_any_more_is_left_out(tmp_path: Path) -> None:
    work = suite.Work(
        results=ResultFolder(tmp_path),
        output=tmp_path,
        device="cpu",
        rates=NOMINAL["cpu"],
        groups={},
        deadline_s=0.0,
        dry_run=True,
    )
    assert not work.time_for("b/x", 10.0)
    (left,) = work.skipped
    assert left.id == "b/x"
    assert "needs about 10 s" in left.reason


@pytest.mark.parametrize(("sglang", "page"), [("0.5.17", 1), ("0.5.23", 16), ("0.6.0+x", 16)])
def test_pages_in_a_dry_run(sglang: str, page: int) -> None:
    assert suite._dry_page_tokens(sglang) == page
