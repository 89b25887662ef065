"""Where KVFlow keeps what it can make again: one cache folder, nothing elsewhere."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from tempfile import gettempdir, mkdtemp
from typing import Final

__all__ = ["cache_dir", "make_run_dir", "remove_stale_run_dirs"]

# A Unix socket's path holds 107 bytes; SGLang adds a file name of its own to the temporary folder.
_LONGEST_RUN_DIR: Final = 70
_RUN_PREFIX: Final = "kvflow-"


def cache_dir(environ: Mapping[str, str] | None = None) -> Path:
    """``$KVFLOW_CACHE_DIR``, else ``$XDG_CACHE_HOME/kvflow``, else ``~/.cache/kvflow``.

    Not created here.
    """
    environ = os.environ if environ is None else environ
    if chosen := environ.get("KVFLOW_CACHE_DIR"):
        return Path(chosen).expanduser()
    if base := environ.get("XDG_CACHE_HOME"):
        return Path(base).expanduser() / "kvflow"
    return Path.home() / ".cache" / "kvflow"


def make_run_dir(environ: Mapping[str, str] | None = None) -> Path:
    """Create the temporary folder of one engine run, named after the calling process.

    SGLang leaves sockets and metric files in its temporary folder when it is killed; in a folder
    of ours they can be cleared away.  Falls back to the system's temporary folder where the cache
    folder's name is too long for a socket.
    """
    parent = cache_dir(environ) / "run"
    if len(os.fsencode(parent)) > _LONGEST_RUN_DIR:
        parent = Path(gettempdir())
    else:
        parent.mkdir(parents=True, exist_ok=True)
    return Path(mkdtemp(prefix=f"{_RUN_PREFIX}{os.getpid()}-", dir=parent))


def remove_stale_run_dirs(environ: Mapping[str, str] | None = None) -> None:
    """Remove run folders whose process is gone (it was killed, or it was an engine itself)."""
    for parent in (cache_dir(environ) / "run", Path(gettempdir())):
        for folder in parent.glob(f"{_RUN_PREFIX}*-*"):
            pid = folder.name.removeprefix(_RUN_PREFIX).partition("-")[0]
            if pid.isdigit() and not Path("/proc", pid).exists():
                shutil.rmtree(folder, ignore_errors=True)
