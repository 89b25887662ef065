"""What ``--database`` may say, and what is meant if it says nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from kvflow.server import ServiceSettings
from kvflow.server.store import MemoryStore
from kvflow.server.store.place import default_database, masked, open_store
from kvflow.server.store.sqlite import SQLiteStore


async def test_what_is_opened(tmp_path: Path) -> None:
    assert isinstance(open_store("none", 1), MemoryStore)
    assert isinstance(open_store(":memory:", 1), MemoryStore)
    store = open_store(str(tmp_path / "w.db"), 1)
    assert isinstance(store, SQLiteStore)
    await store.close()


def test_each_port_has_a_file_of_its_own() -> None:
    assert default_database(8100, {"XDG_STATE_HOME": "/s"}) == "/s/kvflow/service-8100.db"
    assert default_database(8101, {}).endswith("/.local/state/kvflow/service-8101.db")
    assert "~" not in default_database(8101, {})
    assert default_database(0, {"XDG_STATE_HOME": "/s"}) == "none"


@pytest.mark.parametrize("wrong", ["postgres://host/db", "valkey://", " ", "http://x"])
def test_what_it_cannot_be(wrong: str) -> None:
    with pytest.raises(ValidationError, match="database"):
        ServiceSettings(database=wrong)


def test_no_password_is_shown() -> None:
    address = "valkeys://kvflow:swordfish@host:6379/2?password=swordfish"
    assert masked(address) == "valkeys://***@host:6379/2"
    assert masked("/var/lib/w.db") == "/var/lib/w.db"
    assert not any("swordfish" in line for line in ServiceSettings(database=address).lines())
