"""The temporary folder of one engine run, and clearing away what runs before have left."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from tempfile import gettempdir, mkdtemp
from typing import Final

from kvflow.engine.paths import cache_dir

__all__ = ["RunDir", "remove_stale_run_dirs"]

# A Unix socket's path holds 107 bytes; SGLang adds a file name of its own to the temporary folder.
_LONGEST_PARENT: Final = 70
_PREFIX: Final = "kvflow-run-"
_LOCK: Final = "lock"


class RunDir:
    """A folder that is there as long as this process holds it.

    SGLang leaves sockets and metric files in its temporary folder when it is killed; in a folder
    of ours they can be cleared away. Whether a run goes on is told by a lock on a file in it, which
    the kernel releases with the last process that holds it: process ids would not do, as containers
    that share a cache folder do not see each other's.

    The folder is in the cache folder, or in the system's temporary folder where the cache folder's
    name is too long for a socket.
    """

    def __init__(self, environ: Mapping[str, str] | None = None) -> None:
        parent = cache_dir(environ) / "run"
        if len(os.fsencode(parent)) > _LONGEST_PARENT:
            parent = Path(gettempdir())
        else:
            parent.mkdir(parents=True, exist_ok=True)
        # It gets its name when it is locked already, or another start could take it for stale.
        unnamed = Path(mkdtemp(prefix="new-", dir=parent))
        self._lock = os.open(unnamed / _LOCK, os.O_RDWR | os.O_CREAT, 0o600)
        with suppress(OSError):  # a file system without locks: there nothing is taken for stale
            fcntl.flock(self._lock, fcntl.LOCK_EX)
        self.path = unnamed.rename(parent / (_PREFIX + unnamed.name.removeprefix("new-")))

    def keep_over_exec(self) -> None:
        """Let the program that replaces this one hold it."""
        os.set_inheritable(self._lock, True)

    def remove(self) -> None:
        """Remove it with all that is in it. Call it once."""
        shutil.rmtree(self.path, ignore_errors=True)
        os.close(self._lock)


def remove_stale_run_dirs(environ: Mapping[str, str] | None = None) -> None:
    """Remove the folders of runs that are over (killed, or engines in place of their starter)."""
    for parent in (cache_dir(environ) / "run", Path(gettempdir())):
        for folder in parent.glob(f"{_PREFIX}*"):
            if not _is_held(folder):
                shutil.rmtree(folder, ignore_errors=True)


def _is_held(folder: Path) -> bool:
    try:
        lock = os.open(folder / _LOCK, os.O_RDWR)
    except FileNotFoundError:
        return False  # its removal was broken off
    except OSError:
        return True  # another user's
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(lock)
    return False
