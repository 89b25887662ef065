"""A folder for the logs of a run's engines and services."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from kvflow.engine import cache_dir

__all__ = ["log_folder"]

_KEPT: Final = 5


@contextmanager
def log_folder(kind: str, *, keep: bool) -> Iterator[Path]:
    """A folder for this run's logs; it stays if it is wanted, or if the run breaks off.

    Of each ``kind`` of run the newest five stay.
    """
    logs = cache_dir() / "logs"
    now = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
    folder = logs / f"{kind}-{now}-{os.getpid()}"
    folder.mkdir(parents=True)
    for old in sorted(logs.glob(f"{kind}-*"))[:-_KEPT]:
        shutil.rmtree(old, ignore_errors=True)
    yield folder
    if not keep:
        shutil.rmtree(folder, ignore_errors=True)
