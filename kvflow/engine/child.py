"""A server that runs as a child of this process: waiting until it answers, and what it printed."""

from __future__ import annotations

import subprocess
import time
from contextlib import suppress
from pathlib import Path

import httpx2

__all__ = ["last_lines", "start_problem"]

_ANSWER_LIMIT_S = 30.0


def start_problem(
    process: subprocess.Popen[bytes], url: str, *, limit_s: float, poll_s: float
) -> str | None:
    """Wait until a GET of ``url`` succeeds; None then, or what happened instead.

    Args:
        limit_s: how long it may take.
        poll_s: between two attempts.
    """
    deadline_s = time.monotonic() + limit_s
    # A proxy from the environment cannot reach this machine's loopback.
    with httpx2.Client(timeout=_ANSWER_LIMIT_S, trust_env=False) as client:
        while time.monotonic() < deadline_s:
            status = process.poll()
            if status is not None:
                return f"ended while starting (exit status {status})"
            with suppress(httpx2.TransportError):
                if client.get(url).is_success:
                    return None
            time.sleep(poll_s)
    return f"did not answer within {limit_s:.0f} s"


def last_lines(log_path: Path, count: int) -> list[str]:
    """The end of a log; empty if there is none."""
    try:
        text = log_path.read_text(errors="replace")
    except OSError:
        return []
    return text.splitlines()[-count:]
