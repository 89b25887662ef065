"""A service as a process of its own, to be killed and started again."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import httpx2

from kvflow.engine import free_port

__all__ = ["SERVE", "Served"]

SERVE: Final = (sys.executable, "-m", "kvflow.cli.main", "serve")
_START_LIMIT_S: Final = 60.0


class Served:
    """``kvflow serve`` on one port and one database, any number of times.

    Args:
        command: what to run in place of ``kvflow serve``.
    """

    def __init__(
        self, database: str, log_path: Path, command: Sequence[str] = SERVE, *options: str
    ) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._log_path = log_path
        self._command = [*command, "--port", str(self.port), "--database", database, *options]
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> float:
        """Start it; the seconds until it was ready.

        Raises:
            RuntimeError: it does not become ready; with the end of its log.
        """
        began_s = time.perf_counter()
        with self._log_path.open("ab") as log:
            self._process = subprocess.Popen(
                self._command, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        with httpx2.Client(base_url=self.url, timeout=_START_LIMIT_S) as http:
            while time.perf_counter() < began_s + _START_LIMIT_S:
                if self._process.poll() is not None:
                    break
                try:
                    if http.get("/ready").status_code == 200:
                        return time.perf_counter() - began_s
                except httpx2.TransportError:
                    pass
                time.sleep(0.01)
        self.kill()
        log_end = self._log_path.read_text(errors="replace")[-4000:]
        raise RuntimeError(f"the service did not start:\n{log_end}")

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def kill(self) -> None:
        """kill -9, and wait until it is gone."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        """Shut down in an orderly way."""
        self._end(signal.SIGTERM)

    def _end(self, how: signal.Signals) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.send_signal(how)
            process.wait()
