"""SGLang as a process beside this one."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Final, Self

from kvflow.engine.child import last_lines, start_problem
from kvflow.engine.command import EngineCommand
from kvflow.engine.paths import cache_dir
from kvflow.engine.ports import reachable, refuse_taken_port
from kvflow.engine.run_dir import RunDir, remove_stale_run_dirs
from kvflow.errors import EnvironmentProblemError

__all__ = ["EngineProcess"]

_LOG_TAIL_LINES: Final = 30
_POLL_S: Final = 0.5
_STOP_GRACE_S: Final = 10.0
_ORPHAN_GRACE_S: Final = 1.0
# Runs between fork and SGLang: the engine gets its interrupt signal back if this process ignores
# it (as the background jobs of a script do), and is interrupted if this process is killed.
_TIE: Final = """
import ctypes, os, signal, sys
signal.signal(signal.SIGINT, signal.SIG_DFL)
parent = int(sys.argv[1])
if parent:
    PR_SET_PDEATHSIG = 1
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, int(signal.SIGINT))
    if os.getppid() != parent:
        sys.exit("the process that starts the engine is gone")
os.execv(sys.argv[2], sys.argv[2:])
"""
_PORT_TAKEN: Final = re.compile(r"address already in use", re.IGNORECASE)
_NOISE: Final = re.compile(r"^\s*(warnings\.warn|\^+\s*$)")


class EngineProcess:
    """An engine that runs beside this process, in a process group of its own.

    As a context manager it is up, and has answered a one-token request, when the block is entered;
    its whole process group is gone when the block is left.  It also ends when this process is
    killed, if the main thread started it.  Not thread-safe.

    Args:
        log_path: where its output goes; by default a file in the cache folder.
        start_timeout_s: how long it may take to answer, 20 to 40 s being usual for a small model.
    """

    def __init__(
        self, command: EngineCommand, *, log_path: Path | None = None, start_timeout_s: float = 300
    ) -> None:
        self.command = command
        self.log_path = log_path or cache_dir() / "logs" / f"engine-{command.port}.log"
        self.start_timeout_s = start_timeout_s
        self._process: subprocess.Popen[bytes] | None = None
        self._run_dir: RunDir | None = None

    @property
    def base_url(self) -> str:
        """The engine's address without a trailing slash."""
        return f"http://{reachable(self.command.host)}:{self.command.port}"

    @property
    def pid(self) -> int | None:
        """Process id of the engine's launcher and id of its group; None when it is not running."""
        return self._process.pid if self._process else None

    def is_running(self) -> bool:
        """Whether the engine was started and its launcher has not ended."""
        return self._process is not None and self._process.poll() is None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Start the engine and wait until it answers.

        Raises:
            EnvironmentProblemError: the port is taken, the engine ended, or it did not answer in
                time; with the last lines of its log.  Nothing is left running then.
        """
        if self._process is not None:
            raise RuntimeError("this engine was started already; stop it first")
        refuse_taken_port(self.command.host, self.command.port)
        remove_stale_run_dirs()
        self.log_path.parent.mkdir(parents=True, exist_ok=True)
        self._run_dir = RunDir()
        try:
            with self.log_path.open("wb") as log:
                self._process = subprocess.Popen(  # noqa: S603 - argv is built by build_command
                    (sys.executable, "-c", _TIE, self._parent(), *self.command.argv),
                    env={**self.command.env, "TMPDIR": str(self._run_dir.path)},
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
            problem = start_problem(
                self._process,
                f"{self.base_url}/health",
                limit_s=self.start_timeout_s,
                poll_s=_POLL_S,
            )
            if problem is not None:
                raise self._start_problem(problem)
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """End the whole process group: politely, after 10 s by force.  Safe to call twice.

        Requests in flight are dropped.  An interrupt to the launcher alone is what SGLang reacts
        to at once; at a SIGTERM it drains for about ten seconds, and when its children get the
        signal too it takes their end for a crash.
        """
        process, self._process = self._process, None
        if process is not None:
            if process.poll() is None:
                process.send_signal(signal.SIGINT)
            _wait_until_ended(process)
            _signal_group(process.pid, signal.SIGKILL)
            process.wait()
        run_dir, self._run_dir = self._run_dir, None
        if run_dir is not None:
            run_dir.remove()

    def log_tail(self, lines: int = _LOG_TAIL_LINES) -> str:
        """The last lines of the engine's output."""
        return "\n".join(
            line for line in last_lines(self.log_path, lines) if not _NOISE.match(line)
        )

    def problem(self, what: str) -> EnvironmentProblemError:
        """An error to raise: what became of the engine, with its last lines and where to look."""
        return EnvironmentProblemError(
            f"the engine {what}; its last lines:\n{self.log_tail()}",
            f"read {self.log_path}; `kvflow doctor` checks this machine",
        )

    @staticmethod
    def _parent() -> str:
        # The kernel means the thread that starts a process when it says parent.
        main = threading.current_thread() is threading.main_thread()
        return str(os.getpid() if main else 0)

    def _start_problem(self, what: str) -> EnvironmentProblemError:
        if _PORT_TAKEN.search(self.log_path.read_text(errors="replace")):
            return EnvironmentProblemError(
                f"another program took port {self.command.port} while the engine was starting",
                "start the engine again, or choose another port with --port; "
                f"its output is in {self.log_path}",
            )
        return self.problem(what)


def _signal_group(group: int, number: signal.Signals) -> None:
    try:
        os.killpg(group, number)
    except ProcessLookupError:
        return


def _wait_until_ended(process: subprocess.Popen[bytes]) -> None:
    """Wait for the launcher, which ends its children itself, then briefly for those it forgot."""
    try:
        process.wait(_STOP_GRACE_S)
    except subprocess.TimeoutExpired:
        return
    deadline = time.monotonic() + _ORPHAN_GRACE_S
    while time.monotonic() < deadline:
        try:
            os.killpg(process.pid, 0)
        except ProcessLookupError:
            return
        time.sleep(0.05)
