from __future__ import annotations

import os
from pathlib import Path

import pytest

from kvflow.demo.log_folder import log_folder


@pytest.fixture
def logs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("KVFLOW_CACHE_DIR", str(tmp_path))
    return tmp_path / "logs"


def test_logs_go_when_all_went_well(logs: Path) -> None:
    with log_folder("demo", keep=False) as folder:
        (folder / "engine.log").write_text("fine")
    assert list(logs.iterdir()) == []


def test_logs_stay_if_wanted(logs: Path) -> None:
    with log_folder("demo", keep=True) as folder:
        pass
    assert list(logs.iterdir()) == [folder]


def test_logs_stay_if_the_run_breaks_off(logs: Path) -> None:
    with pytest.raises(KeyboardInterrupt), log_folder("demo", keep=False):
        raise KeyboardInterrupt
    assert len(list(logs.glob("demo-*"))) == 1


def test_only_the_newest_logs_stay_and_only_the_demos_go(logs: Path) -> None:
    logs.mkdir()
    (logs / "engine-30000.log").touch()
    for day in range(1, 9):
        (logs / f"demo-2020010{day}-000000-1").mkdir()
    with log_folder("demo", keep=True) as folder:
        pass
    left = sorted(os.listdir(logs))
    assert left == [
        *(f"demo-2020010{day}-000000-1" for day in range(5, 9)),
        folder.name,
        "engine-30000.log",
    ]
