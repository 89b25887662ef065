"""A key file with keys of every scope."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from kvflow.server.keys import (
    ClientLimits,
    ClientRecord,
    KeyScope,
    change_key_file,
    configure,
    create_key,
)

LONG_AGO = datetime(2020, 1, 1, tzinfo=UTC)
NAMES: dict[str, KeyScope] = {
    "ops": "admin",
    "team-a": "client",
    "team-b": "client",
    "gpu-1": "engine",
}


@dataclass(frozen=True)
class MadeKeys:
    """Where the file is, and the key of each name in it."""

    path: Path
    keys: dict[str, str]

    def headers(self, name: str) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.keys[name]}"}

    def limit(self, client_id: str, **limits: float) -> None:
        record = ClientRecord(limits=ClientLimits.model_validate(limits))
        change_key_file(self.path, lambda content: (configure(content, client_id, record), None))

    def isolate(self, client_id: str) -> None:
        record = ClientRecord(isolate_cache=True)
        change_key_file(self.path, lambda content: (configure(content, client_id, record), None))


def make_keys(path: Path) -> MadeKeys:
    made = {
        name: change_key_file(
            path,
            lambda content, name=name, scope=scope: create_key(content, name, scope, LONG_AGO),
        ).key
        for name, scope in NAMES.items()
    }
    return MadeKeys(path, made)
