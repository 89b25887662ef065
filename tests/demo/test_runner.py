from __future__ import annotations

import os
from pathlib import Path

import pytest

from kvflow.demo.arms import ARMS
from kvflow.demo.runner import DemoOptions, _engine_options, _log_folder, _shown_flags
from kvflow.engine import EngineCommand
from kvflow.errors import InvalidInputError


@pytest.mark.parametrize("rounds", [0, 1, 7])
def test_rounds_out_of_range_are_refused(rounds: int) -> None:
    with pytest.raises(InvalidInputError, match="2 to 6"):
        DemoOptions(arms=(ARMS["stock"],), rounds=rounds)


def test_engines_of_a_setting_differ_in_the_cache_only() -> None:
    stock = _engine_options(ARMS["stock+hicache"], "cpu", None)
    kvflow = _engine_options(ARMS["kvflow+hicache"], "cpu", "http://127.0.0.1:1")
    assert stock.radix == "stock"
    assert kvflow.radix == "kvflow"
    assert stock.env == {}
    assert kvflow.env == {"KVFLOW_SERVICE_URL": "http://127.0.0.1:1", "KVFLOW_PREFETCH": "on"}
    for name in ("model", "device", "page_size", "max_total_tokens", "hicache_ratio", "extra_args"):
        assert getattr(stock, name) == getattr(kvflow, name)


@pytest.mark.parametrize("name", ["kvflow+hicache-noprefetch", "kvflow"])
def test_an_arm_without_prefetch_switches_it_off(name: str) -> None:
    options = _engine_options(ARMS[name], "cpu", "http://127.0.0.1:1")
    assert options.env["KVFLOW_PREFETCH"] == "off"


def test_shown_flags_name_no_folder_of_this_machine() -> None:
    argv = ("python", "-m", "sglang.launch_server", "--model-path", "/home/me/model", "--tp", "1")
    command = EngineCommand(argv=argv, env={}, host="127.0.0.1", port=1)
    assert _shown_flags(command) == ["--model-path", "smollm2", "--tp", "1"]


@pytest.fixture
def logs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("KVFLOW_CACHE_DIR", str(tmp_path))
    return tmp_path / "logs"


def test_logs_go_when_all_went_well(logs: Path) -> None:
    with _log_folder(keep=False) as folder:
        (folder / "engine.log").write_text("fine")
    assert list(logs.iterdir()) == []


def test_logs_stay_if_wanted(logs: Path) -> None:
    with _log_folder(keep=True) as folder:
        pass
    assert list(logs.iterdir()) == [folder]


def test_logs_stay_if_the_run_breaks_off(logs: Path) -> None:
    with pytest.raises(KeyboardInterrupt), _log_folder(keep=False):
        raise KeyboardInterrupt
    assert len(list(logs.glob("demo-*"))) == 1


def test_only_the_newest_logs_stay_and_only_the_demos_go(logs: Path) -> None:
    logs.mkdir()
    (logs / "engine-30000.log").touch()
    for day in range(1, 9):
        (logs / f"demo-2020010{day}-000000-1").mkdir()
    with _log_folder(keep=True) as folder:
        pass
    left = sorted(os.listdir(logs))
    assert left == [
        *(f"demo-2020010{day}-000000-1" for day in range(5, 9)),
        folder.name,
        "engine-30000.log",
    ]
