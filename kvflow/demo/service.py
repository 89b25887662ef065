"""The KVFlow service as a process beside this one, on a port of its own."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final, Self

from kvflow.engine import free_port
from kvflow.engine.child import last_lines, start_problem
from kvflow.errors import EnvironmentProblemError

__all__ = ["SERVE", "ServiceProcess"]

SERVE: Final = (sys.executable, "-m", "kvflow.cli.main", "serve")

_START_LIMIT_S: Final = 60.0
_STOP_GRACE_S: Final = 10.0
_POLL_S: Final = 0.01
_LOG_TAIL_LINES: Final = 20


class ServiceProcess:
    """``kvflow serve`` in a session of its own; up inside the block, gone after it.

    Without a block it may be started, stopped and killed any number of times: its port stays.

    Args:
        log_path: what it prints is added there.
        options: of ``kvflow serve``. Workflows are kept in memory unless a database is named.
        command: what to run in place of ``kvflow serve``.
        environment: this process's own if None.
    """

    def __init__(
        self,
        log_path: Path,
        *options: str,
        command: Sequence[str] = SERVE,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.log_path = log_path
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        own = ("--host", "127.0.0.1", "--port", str(self.port), "--database", "none")
        self._command = (*command, *own, *options)
        self._environment = environment
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """
        Raises:
            RuntimeError: it is not running.
        """
        if self._process is None:
            raise RuntimeError("the service was not started, or was ended")
        return self._process.pid

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> float:
        """Start it and wait until it is ready; how many seconds that took.

        Raises:
            EnvironmentProblemError: it ends, or is not ready within a minute; with the last lines
                of its log. Nothing is left running then.
        """
        self.log_path.parent.mkdir(parents=True, exist_ok=True)
        began_s = time.monotonic()
        with self.log_path.open("ab") as log:
            self._process = subprocess.Popen(  # noqa: S603 - our own interpreter and module
                self._command,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        try:
            problem = start_problem(
                self._process, f"{self.url}/ready", limit_s=_START_LIMIT_S, poll_s=_POLL_S
            )
            if problem is not None:
                raise self._problem(problem)
        except BaseException:
            self.stop()
            raise
        return time.monotonic() - began_s

    def stop(self) -> None:
        """End the process: politely, after 10 s by force. Safe to call twice."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """End the process as ``kill -9`` does, and wait until it is gone. Safe to call twice."""
        self._end(signal.SIGKILL)

    def _end(self, how: signal.Signals) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        process.send_signal(how)
        try:
            process.wait(_STOP_GRACE_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def _problem(self, what: str) -> EnvironmentProblemError:
        lines = last_lines(self.log_path, _LOG_TAIL_LINES)
        return EnvironmentProblemError(
            "\n".join([f"the KVFlow service {what}; its last lines:", *lines]),
            f"read {self.log_path}; `kvflow doctor` checks this machine",
        )
