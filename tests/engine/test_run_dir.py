from __future__ import annotations

import errno
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

import pytest

from kvflow.engine import run_dir
from kvflow.engine.run_dir import RunDir, remove_stale_run_dirs


@pytest.fixture
def environ(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Mapping[str, str]:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(run_dir, "_LONGEST_PARENT", len(f"{tmp_path}/c/run"))
    return {"KVFLOW_CACHE_DIR": f"{tmp_path}/c"}


@pytest.mark.parametrize("cache", ["c", "too-long-for-a-socket"])
def test_what_is_held_stays_and_what_was_left_goes(
    cache: str, tmp_path: Path, environ: Mapping[str, str]
) -> None:
    environ = {"KVFLOW_CACHE_DIR": f"{tmp_path}/{cache}"}
    mine = RunDir(environ)
    assert mine.path.parent == (tmp_path / "c" / "run" if cache == "c" else tmp_path)
    stale = mine.path.with_name("kvflow-run-stale")
    broken_off = mine.path.with_name("kvflow-run-half")
    foreign = mine.path.with_name("kvflow-storage-x")
    for folder in (stale, broken_off, foreign):
        folder.mkdir()
    (stale / "lock").touch()
    (stale / "socket").touch()
    remove_stale_run_dirs(environ)
    assert mine.path.is_dir()
    assert foreign.is_dir()
    assert not stale.exists()
    assert not broken_off.exists()
    mine.remove()
    assert not mine.path.exists()


HOLDER = """
import os, sys
from kvflow.engine.run_dir import RunDir
held = RunDir({"KVFLOW_CACHE_DIR": sys.argv[1]})
held.keep_over_exec()
print(held.path, flush=True)
next_program = "import sys; print('on', flush=True); sys.stdin.read()"
os.execvp(sys.executable, [sys.executable, "-c", next_program])
"""


def test_it_is_held_by_what_takes_the_place_of_its_maker(environ: Mapping[str, str]) -> None:
    command = [sys.executable, "-c", HOLDER, environ["KVFLOW_CACHE_DIR"]]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None
        held = Path(holder.stdout.readline().strip())
        assert holder.stdout.readline() == "on\n"
        remove_stale_run_dirs(environ)
        assert held.is_dir()
        holder.kill()
    remove_stale_run_dirs(environ)
    assert not held.exists()


def test_a_folder_is_no_longer_held_once_it_is_removed(environ: Mapping[str, str]) -> None:
    before = len(os.listdir("/proc/self/fd"))
    RunDir(environ).remove()
    assert len(os.listdir("/proc/self/fd")) == before


def test_where_there_are_no_locks_nothing_goes(
    environ: Mapping[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_locks(_file: int, _how: int) -> None:
        raise OSError(errno.ENOLCK, "no locks available")

    monkeypatch.setattr(run_dir.fcntl, "flock", no_locks)
    mine = RunDir(environ)
    remove_stale_run_dirs(environ)
    assert mine.path.is_dir()
    mine.remove()
