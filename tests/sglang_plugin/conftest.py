"""Fixtures for tests of the plugin."""

from __future__ import annotations

import pytest

from kvflow.engine import free_port


@pytest.fixture(scope="session")
def service_port() -> int:
    """Where a service comes and goes; one for the session, so that its tests share an engine."""
    return free_port()
