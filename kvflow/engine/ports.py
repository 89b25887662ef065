"""Ports of servers that listen only later: a free one, and one that has to be free."""

from __future__ import annotations

import secrets
import socket
from pathlib import Path
from typing import Final

from kvflow.errors import EnvironmentProblemError

__all__ = ["free_port", "reachable", "refuse_taken_port"]

# Below it the kernel gives no port to an outgoing connection or to a listener that asks for any.
# SGLang looks for ports of its own from 22,000 on (0.5.23: srt/utils/network.py).
_EPHEMERAL_RANGE: Final = Path("/proc/sys/net/ipv4/ip_local_port_range")
_PORTS: Final = (10_000, 22_000)
_PORT_TRIES: Final = 100


def free_port(host: str = "127.0.0.1") -> int:
    """Return a port that nothing listens on just now, and that is likely to stay free.

    An engine listens only after it has loaded its model.  A port out of the kernel's ephemeral
    range could be given to any connection meanwhile, so one below that range is drawn, where there
    is room below it.
    """
    ports = range(_PORTS[0], min(_PORTS[1], _first_ephemeral_port()))
    for _ in range(_PORT_TRIES if ports else 0):
        port = secrets.choice(ports)
        if _can_listen(host, port):
            return port
    with socket.socket(_family(host)) as probe:
        probe.bind((host, 0))
        chosen: int = probe.getsockname()[1]
        return chosen


def refuse_taken_port(host: str, port: int) -> None:
    """Say so now, and not after the model is loaded.

    Raises:
        EnvironmentProblemError: something listens there.
    """
    host = reachable(host)
    try:
        socket.create_connection((host.strip("[]"), port), timeout=2).close()
    except OSError:
        return
    raise EnvironmentProblemError(
        f"something is listening on {host}:{port} already",
        "stop it (perhaps an engine of an earlier run), or choose another port with --port",
    )


def reachable(host: str) -> str:
    """What to put into a URL for a server that listens on ``host``."""
    if host in {"0.0.0.0", "::"}:
        return "127.0.0.1" if host == "0.0.0.0" else "[::1]"
    return f"[{host}]" if ":" in host else host


def _first_ephemeral_port() -> int:
    try:
        return int(_EPHEMERAL_RANGE.read_text().split()[0])
    except (OSError, ValueError, IndexError):
        return 0


def _family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET


def _can_listen(host: str, port: int) -> bool:
    with socket.socket(_family(host)) as probe:
        try:
            probe.bind((host, port))
        except OSError:
            return False
        return True
