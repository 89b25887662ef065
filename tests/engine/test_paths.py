from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest

from kvflow.engine import paths
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


GONE = 4194305  # above the highest process id there can be


@pytest.mark.parametrize("deep", [False, True])
def test_stale_run_dirs_go_and_live_ones_stay(
    deep: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    parent = tmp_path / "tmp" if deep else tmp_path / "c" / "run"
    parent.mkdir(parents=True)
    mine = parent / f"kvflow-{os.getpid()}-abc"
    stale = parent / f"kvflow-{GONE}-abc"
    foreign = parent / "kvflow-notes-abc"
    for folder in (mine, stale, foreign):
        folder.mkdir()
        (folder / "socket").touch()
    remove_stale_run_dirs({"KVFLOW_CACHE_DIR": str(tmp_path / "c")})
    assert mine.is_dir()
    assert foreign.is_dir()
    assert not stale.exists()


def test_a_run_dir_lies_in_the_cache_unless_socket_names_would_be_too_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(paths, "_LONGEST_RUN_DIR", len(f"{tmp_path}/c/run"))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    assert make_run_dir({"KVFLOW_CACHE_DIR": f"{tmp_path}/c"}).parent == tmp_path / "c" / "run"
    assert make_run_dir({"KVFLOW_CACHE_DIR": f"{tmp_path}/cc"}).parent == tmp_path
