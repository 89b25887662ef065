from __future__ import annotations

import os
from pathlib import Path

import pytest

from kvflow.engine.paths import cache_dir, make_run_dir, remove_stale_run_dirs


@pytest.mark.parametrize(
    ("environ", "folder"),
    [
        ({"KVFLOW_CACHE_DIR": "/a", "XDG_CACHE_HOME": "/b"}, "/a"),
        ({"XDG_CACHE_HOME": "/b"}, "/b/kvflow"),
        ({"KVFLOW_CACHE_DIR": "", "XDG_CACHE_HOME": ""}, str(Path.home() / ".cache/kvflow")),
        ({}, str(Path.home() / ".cache/kvflow")),
    ],
)
def test_cache_dir(environ: dict[str, str], folder: str) -> None:
    assert cache_dir(environ) == Path(folder)


def test_stale_run_dirs_go_and_live_ones_stay(tmp_path: Path) -> None:
    environ = {"KVFLOW_CACHE_DIR": str(tmp_path / "c")}
    (tmp_path / "c" / "run").mkdir(parents=True)
    mine = tmp_path / "c" / "run" / f"{os.getpid()}-abc"
    stale = tmp_path / "c" / "run" / "4194305-abc"  # above the highest process id there can be
    foreign = tmp_path / "c" / "run" / "notes-abc"
    for folder in (mine, stale, foreign):
        folder.mkdir()
        (folder / "socket").touch()
    remove_stale_run_dirs(environ)
    assert mine.is_dir()
    assert foreign.is_dir()
    assert not stale.exists()


def test_a_long_cache_path_does_not_end_up_in_socket_names(tmp_path: Path) -> None:
    folder = make_run_dir({"KVFLOW_CACHE_DIR": str(tmp_path / ("x" * 80))})
    try:
        assert len(str(folder)) < 80
    finally:
        folder.rmdir()
