from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("typer")
pytest.importorskip("rich")
pytest.importorskip("matplotlib")

from kvflow.bench import BenchOptions, BenchResult, Progress
from kvflow.bench import report as report_module
from kvflow.cli import bench as command
from kvflow.errors import EnvironmentProblemError, InvalidInputError
from tests.bench.made_up import result, row


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[BenchOptions]:
    """The options of the runs asked for; each yields a made-up result at once."""
    asked_for: list[BenchOptions] = []

    def run(options: BenchOptions, progress: Progress) -> BenchResult:
        asked_for.append(options)
        progress.run_begins(options.arms[0], 1, 3, 50)
        progress.call_done(row())
        progress.note("Starting something.")
        return result()

    monkeypatch.setattr(command, "run_bench", run)
    return asked_for


@pytest.fixture
def scenario_file(tmp_path: Path) -> str:
    file = tmp_path / "mine.toml"
    file.write_text('name = "mine"\n[cache]\ndevice_tokens = 6144\n')
    return str(file)


def test_a_scenario_runs_on_all_arms_and_is_shown(
    ran: list[BenchOptions], scenario_file: str, capsys: pytest.CaptureFixture[str]
) -> None:
    command.bench(scenario_file)
    (options,) = ran
    assert options.scenario.name == "mine"
    assert options.base == Path(scenario_file).parent
    assert [arm.name for arm in options.arms] == ["limit", "lru", "priority", "kvflow"]
    assert options.repeats == 3
    written = capsys.readouterr().out
    assert "Starting something." in written
    assert "identical outputs" in written
    assert "vs lru" in written


def test_files_are_written(ran: list[BenchOptions], scenario_file: str, tmp_path: Path) -> None:
    figures, page = tmp_path / "figures.json", tmp_path / "report.html"
    command.bench(scenario_file, json_file=str(figures), html_file=str(page), arms="lru,kvflow")
    assert json.loads(figures.read_text())["outputs_identical"] is True
    assert page.read_text().startswith("<!doctype html>")


def test_figures_alone_go_to_stdout(
    ran: list[BenchOptions], scenario_file: str, capsys: pytest.CaptureFixture[str]
) -> None:
    command.bench(scenario_file, json_file="-")
    written = capsys.readouterr()
    assert json.loads(written.out)["format"] == 1
    assert "identical outputs" in written.err


def test_engine_arguments_are_for_all_arms(ran: list[BenchOptions], scenario_file: str) -> None:
    command.bench(
        scenario_file, engine_arg=["--mem-fraction-static=0.8"], engines_at_once=2, model="org/m"
    )
    assert ran[0].engine_args == ("--mem-fraction-static=0.8",)
    assert ran[0].engines_at_once == 2
    assert ran[0].model == "org/m"


def test_the_list_has_the_scenarios_that_ship_and_runs_nothing(
    ran: list[BenchOptions], capsys: pytest.CaptureFixture[str]
) -> None:
    command.bench(show_list=True)
    written = capsys.readouterr().out
    assert ran == []
    for name in command.shipped_scenarios():
        assert name in written


@pytest.mark.parametrize(
    ("call", "field"),
    [
        (lambda file, folder: command.bench(), "SCENARIO"),
        (lambda file, folder: command.bench("nowhere.toml"), "nowhere.toml"),
        (lambda file, folder: command.bench(file, arms="vllm"), "--arms"),
        (lambda file, folder: command.bench(file, arms="hicache-write-back"), "--arms"),
        (lambda file, folder: command.bench(file, repeats=0), "--repeats"),
        (lambda file, folder: command.bench(file, engines_at_once=0), "--engines-at-once"),
        (lambda file, folder: command.bench(file, device="tpu"), "--device"),
        (lambda file, folder: command.bench(file, json_file=str(folder)), "--json"),
        (lambda file, folder: command.bench(file, html_file=f"{folder}/none/f"), "--html"),
        (lambda file, folder: command.bench(file, storage_dir="/nowhere"), "--storage-dir"),
    ],
)
def test_wrong_options_are_refused_before_anything_runs(
    ran: list[BenchOptions],
    scenario_file: str,
    tmp_path: Path,
    call: Callable[[str, Path], None],
    field: str,
) -> None:
    with pytest.raises(InvalidInputError) as caught:
        call(scenario_file, tmp_path)
    assert caught.value.field == (field,)
    assert ran == []


def test_a_report_that_could_not_be_made_is_refused_before_anything_runs(
    ran: list[BenchOptions], scenario_file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(report_module, "find_spec", lambda name: None)
    with pytest.raises(EnvironmentProblemError):
        command.bench(scenario_file, html_file=str(tmp_path / "report.html"))
    assert ran == []


def test_an_interrupt_is_told(
    scenario_file: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(options: BenchOptions, progress: Progress) -> BenchResult:
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "run_bench", interrupted)
    with pytest.raises(KeyboardInterrupt):
        command.bench(scenario_file)
    assert "its processes are stopped" in capsys.readouterr().err
