"""Where KVFlow keeps what it can make again: one cache folder, nothing elsewhere."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

__all__ = ["cache_dir"]


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
