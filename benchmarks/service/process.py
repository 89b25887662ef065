"""``kvflow serve`` as a process of its own, and what it uses of the machine."""

from __future__ import annotations

import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from kvflow.engine import free_port

__all__ = ["ServiceProcess", "cpu_s", "resident_bytes", "serving"]

_READY_TIMEOUT_S = 60.0
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True, slots=True)
class ServiceProcess:
    """A service that answers on loopback."""

    pid: int
    port: int


@contextmanager
def serving(
    arguments: Sequence[str], log: Path, environment: Mapping[str, str] | None = None
) -> Iterator[ServiceProcess]:
    """``kvflow serve`` with these arguments, on a free port; ended by SIGTERM.

    Settings of the caller's environment (``KVFLOW_...``) are left out. Workflows are kept in memory
    unless told otherwise.

    Raises:
        RuntimeError: it ends, or does not answer in a minute; with the end of its log.
    """
    port = free_port()
    clean = {name: value for name, value in os.environ.items() if not name.startswith("KVFLOW_")}
    command = [sys.executable, "-m", "kvflow.cli.main", "serve", "--port", str(port), *arguments]
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            env={**clean, "KVFLOW_DATABASE": "none", **(environment or {})},
            stdout=output,
            stderr=output,
        )
    try:
        _wait_until_ready(process, port, log)
        yield ServiceProcess(process.pid, port)
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def cpu_s(pid: int | str) -> float:
    """CPU time that the process has used, in seconds."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS_PER_S


def resident_bytes(pid: int) -> int:
    """Memory of the process that is in RAM and its own (what it shares with files is left out)."""
    pages = Path(f"/proc/{pid}/statm").read_text().split()
    return (int(pages[1]) - int(pages[2])) * _PAGE_BYTES


def _wait_until_ready(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    deadline_s = time.monotonic() + _READY_TIMEOUT_S
    while time.monotonic() < deadline_s:
        if process.poll() is not None:
            raise RuntimeError(f"kvflow serve has ended:\n{log.read_text()[-2000:]}")
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/ready", timeout=5) as answer:
                if answer.status == 200:
                    return
        except (OSError, urllib.error.URLError):
            time.sleep(0.05)
    raise RuntimeError(f"kvflow serve does not answer:\n{log.read_text()[-2000:]}")
