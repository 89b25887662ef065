"""Fixtures and settings shared by all tests."""

from __future__ import annotations

import os
from collections.abc import Iterator
from importlib.util import find_spec

import pytest
from hypothesis import HealthCheck, settings

from tests.engines import Engines

# How long an example takes says something about the machine, not about the code.
settings.register_profile(
    "untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow], print_blob=True
)
settings.load_profile("untimed")


@pytest.fixture(scope="session", autouse=True)
def _state_at_no_users_home(tmp_path_factory: pytest.TempPathFactory) -> None:
    # A `kvflow serve` that is told nothing keeps its database there.
    os.environ["XDG_STATE_HOME"] = str(tmp_path_factory.mktemp("state"))


@pytest.fixture(scope="session")
def engines(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engines]:
    """Real SGLang engines on the CPU; for tests marked ``engine``."""
    if find_spec("sglang") is None:  # importing it would take half a minute
        pytest.skip("needs SGLang: run `make install`")
    running = Engines(tmp_path_factory.mktemp("engines"))
    yield running
    running.close()
