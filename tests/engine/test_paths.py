from __future__ import annotations

from pathlib import Path

import pytest

from kvflow.engine.paths import cache_dir


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
