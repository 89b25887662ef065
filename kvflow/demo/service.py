"""The KVFlow service as a process beside this one, on a port of its own."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from kvflow.agent_sdk import KVFlowClient
from kvflow.engine import free_port
from kvflow.errors import EnvironmentProblemError, KVFlowError

__all__ = ["ServiceProcess"]

_START_LIMIT_S: Final = 30.0
_STOP_GRACE_S: Final = 10.0
_POLL_S: Final = 0.1
_LOG_TAIL_LINES: Final = 20


class ServiceProcess:
    """``kvflow serve`` in a session of its own; up inside the block, gone after it."""

    def __init__(self, log_path: Path) -> None:
        self.log_path = log_path
        self.url = f"http://127.0.0.1:{free_port()}"
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self.log_path.parent.mkdir(parents=True, exist_ok=True)
        port = self.url.rpartition(":")[2]
        command = [sys.executable, "-m", "kvflow.cli.main", "serve", "--host", "127.0.0.1"]
        with self.log_path.open("wb") as log:
            self._process = subprocess.Popen(  # noqa: S603 - our own interpreter and module
                [*command, "--port", port, "--database", "none"],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        try:
            self._wait_until_ready(self._process)
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """End the process: politely, after 10 s by force. Safe to call twice."""
        process, self._process = self._process, None
        if process is None:
            return
        process.terminate()
        try:
            process.wait(_STOP_GRACE_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def _wait_until_ready(self, process: subprocess.Popen[bytes]) -> None:
        deadline = time.monotonic() + _START_LIMIT_S
        with KVFlowClient(self.url) as client:
            while time.monotonic() < deadline:
                status = process.poll()
                if status is not None:
                    raise self._problem(f"ended while starting (exit status {status})")
                try:
                    if client.ready():
                        return
                except KVFlowError:
                    pass
                time.sleep(_POLL_S)
        raise self._problem(f"did not answer within {_START_LIMIT_S:.0f} s")

    def _problem(self, what: str) -> EnvironmentProblemError:
        lines = self.log_path.read_text(errors="replace").splitlines()[-_LOG_TAIL_LINES:]
        return EnvironmentProblemError(
            "\n".join([f"the KVFlow service {what}; its last lines:", *lines]),
            f"read {self.log_path}; `kvflow doctor` checks this machine",
        )
