"""``kvflow serve`` as a process that can be killed, and the engine that looks for it."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import httpx2

from tests.engines import Engines, RunningEngine

PATIENCE_S = 60.0
LEASE_S = 2.0


ADMIN_KEY = "the-key-of-the-engines-stream"
"""Sent by the engine's plugin. Services without keys take it, too."""


@contextmanager
def service(port: int, *options: str) -> Iterator[subprocess.Popen[bytes]]:
    """``kvflow serve`` as a process of its own, up and ready; it forgets all when it goes."""
    command = [sys.executable, "-m", "kvflow.cli.main", "serve", "--port", str(port)]
    command += ["--database", "none", "--lease-s", str(LEASE_S), *options]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        eventually(lambda: _ready(port))
        yield process
    finally:
        process.kill()
        process.wait()


def engine_of(engines: Engines, port: int, **env: str) -> RunningEngine:
    """One engine, device cache only, for all tests with a service on this port.

    With other variables in ``env`` it is another one.
    """
    return engines.start(
        radix="kvflow",
        max_total_tokens=1280,
        page_size=16,
        env={
            "KVFLOW_SERVICE_URL": f"http://127.0.0.1:{port}",
            "KVFLOW_API_KEY": ADMIN_KEY,
            "KVFLOW_LEASE_S": str(LEASE_S),
            **env,
        },
    )


def eventually(condition: Callable[[], bool]) -> None:
    """Wait until the condition holds; fails after a time that only a defect needs."""
    deadline_s = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline_s, "did not happen"
        time.sleep(0.1)


def _ready(port: int) -> bool:
    try:
        return httpx2.get(f"http://127.0.0.1:{port}/ready", trust_env=False).is_success
    except httpx2.HTTPError:
        return False
