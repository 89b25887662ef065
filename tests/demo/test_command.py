from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("typer")
pytest.importorskip("rich")

from kvflow.cli import demo as command
from kvflow.demo import DemoOptions, DemoResult
from kvflow.demo.progress import Progress
from kvflow.errors import InvalidInputError
from tests.demo.conftest import make_arm, make_result


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[DemoOptions]:
    """The options of the runs asked for; each yields a made-up result at once."""
    asked_for: list[DemoOptions] = []

    def run(options: DemoOptions, progress: Progress) -> DemoResult:
        asked_for.append(options)
        return make_result(*(make_arm(arm.name) for arm in options.arms))

    monkeypatch.setattr(command, "run_demo", run)
    return asked_for


def test_without_options_four_arms_run_for_three_rounds(
    ran: list[DemoOptions], capsys: pytest.CaptureFixture[str]
) -> None:
    command.demo()
    (options,) = ran
    assert [arm.name for arm in options.arms] == [
        "stock",
        "kvflow",
        "stock+hicache",
        "kvflow+hicache",
    ]
    assert options.rounds == 3
    assert "identical outputs" in capsys.readouterr().out


def test_figures_go_to_the_file_named(ran: list[DemoOptions], tmp_path: Path) -> None:
    command.demo(json_file=str(tmp_path / "figures.json"), arms="all")
    assert len(ran[0].arms) == 8
    assert '"outputs_identical": true' in (tmp_path / "figures.json").read_text()


def test_figures_alone_go_to_stdout(
    ran: list[DemoOptions], capsys: pytest.CaptureFixture[str]
) -> None:
    command.demo(json_file="-", arms="stock, kvflow")
    written = capsys.readouterr()
    assert written.out.startswith("{")
    assert written.out.rstrip().endswith("}")
    assert "identical outputs" in written.err


@pytest.mark.parametrize(
    ("call", "field"),
    [
        (lambda folder: command.demo(arms="vllm"), "--arms"),
        (lambda folder: command.demo(rounds=1), "--rounds"),
        (lambda folder: command.demo(device="tpu"), "--device"),
        (lambda folder: command.demo(json_file=str(folder)), "--json"),
        (lambda folder: command.demo(json_file=str(folder / "none" / "f.json")), "--json"),
    ],
)
def test_wrong_options_are_refused_before_anything_runs(
    ran: list[DemoOptions], tmp_path: Path, call: Callable[[Path], None], field: str
) -> None:
    with pytest.raises(InvalidInputError) as caught:
        call(tmp_path)
    assert caught.value.field == (field,)
    assert ran == []
