"""Fixtures shared by all tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.engines import Engines


@pytest.fixture(scope="session")
def engines(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engines]:
    """Real SGLang engines on the CPU; for tests marked ``engine``."""
    pytest.importorskip("sglang", reason="needs SGLang: run `make install`")
    running = Engines(tmp_path_factory.mktemp("engines"))
    yield running
    running.close()
