"""Keys for tests: a file with an administrator, two clients and an engine, and time that stands."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from tests.server.keys.made import MadeKeys, make_keys


@dataclass
class Calendar:
    """A time of day that only moves when told."""

    now: datetime = datetime(2026, 3, 1, tzinfo=UTC)

    def __call__(self) -> datetime:
        return self.now

    def pass_by(self, **span: float) -> None:
        self.now += timedelta(**span)


@pytest.fixture
def calendar() -> Calendar:
    return Calendar()


@pytest.fixture
def made(tmp_path: Path) -> MadeKeys:
    return make_keys(tmp_path / "keys.json")
