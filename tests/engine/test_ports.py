"""A port that is free, and stays free until an engine listens."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from kvflow.engine import free_port, ports


def test_a_free_port_is_none_that_the_kernel_gives_to_connections(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    ephemeral = tmp_path / "range"
    monkeypatch.setattr(ports, "_EPHEMERAL_RANGE", ephemeral)
    ephemeral.write_text("10100\t60999\n")
    assert {10_000 <= free_port() < 10_100 for _ in range(50)} == {True}
    ephemeral.write_text("1024\t60999\n")
    assert free_port() >= 1024


def test_a_free_port_is_not_one_that_is_listened_on(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        other = free_port()
        drawn = iter([port, other])
        monkeypatch.setattr(ports.secrets, "choice", lambda _ports: next(drawn))
        assert free_port() == other
