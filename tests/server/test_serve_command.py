"""``kvflow serve`` as a user starts it."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx2
import pytest

from kvflow.cli.main import main
from kvflow.errors import EnvironmentProblemError
from kvflow.protocol import Heartbeat, Snapshot
from kvflow.server.run import listen
from kvflow.workload.converters import convert
from tests.server.running import PATIENCE_S, stream
from tests.server.workflow_bodies import cycle, finished, started


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    status = main(["serve", *arguments])
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "Traceback" not in printed.err
    return status, printed.err


@contextmanager
def served(*arguments: str, **environment: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    env = {name: value for name, value in os.environ.items() if not name.startswith("KVFLOW_")}
    process = subprocess.Popen(
        [
            sys.executable,
            "-W",
            "error",
            "-m",
            "kvflow.cli.main",
            "serve",
            "--port",
            "0",
            *arguments,
        ],
        stderr=subprocess.PIPE,
        text=True,
        env=env | environment,
    )
    try:
        assert process.stderr is not None
        for line in process.stderr:
            if found := re.search(r"listening on (http://\S+)", line):
                break
        else:
            pytest.fail("it did not start")
        yield process, found[1]
    finally:
        process.kill()
        process.communicate(timeout=PATIENCE_S)


@pytest.mark.parametrize("interrupt", [signal.SIGINT, signal.SIGTERM])
def test_serve_until_a_signal(interrupt: signal.Signals) -> None:
    with (
        served(KVFLOW_API_KEY="swordfish", KVFLOW_LEASE_S="3600") as (process, url),
        httpx2.Client(base_url=url, timeout=PATIENCE_S) as http,
    ):
        assert http.get("/v1/workflows").status_code == 401
        http.headers["Authorization"] = "Bearer swordfish"
        assert http.post("/v1/workflows", json=cycle()).status_code == 201
        with stream(http) as reader:
            assert reader.next() is not None
            process.send_signal(interrupt)
            assert reader.next() is None
        assert process.wait(PATIENCE_S) == (0 if interrupt == signal.SIGINT else -interrupt)
        assert process.stderr is not None
        log = process.stderr.read()
        assert "Traceback" not in log
        assert "swordfish" not in log


def test_an_option_goes_before_the_environment() -> None:
    with served("--lease-s", "77", KVFLOW_LEASE_S="5") as (_, url):
        client = httpx2.Client(base_url=url, timeout=PATIENCE_S)
        with client, stream(client) as reader:
            first = reader.next()
    assert first is not None
    assert first.model_dump()["lease_s"] == 77


def test_an_idle_service_keeps_saying_that_it_is_there() -> None:
    """On the event loop of `kvflow serve`, which wakes up to half a millisecond before its time.

    A third of this lease is no whole number of milliseconds, and is rounded down.
    """
    with (
        served("--lease-s", "1") as (_, url),
        httpx2.Client(base_url=url, timeout=PATIENCE_S) as http,
        stream(http) as reader,
    ):
        first, *others = [reader.next() for _ in range(5)]
    assert isinstance(first, Snapshot)
    assert [type(one) for one in others] == [Heartbeat] * 4


def test_a_recording_is_whole_after_a_signal(tmp_path: Path) -> None:
    recording = tmp_path / "recording.jsonl"
    with served("--record", str(recording)) as (process, url):
        with httpx2.Client(base_url=url, timeout=PATIENCE_S) as http:
            assert http.post("/v1/workflows", json=cycle()).status_code == 201
            events = [started("a0"), finished("a0"), started("a1")]
            assert http.post("/v1/workflows/w/events", json=events).status_code == 200
        process.send_signal(signal.SIGINT)
        assert process.wait(PATIENCE_S) == 0
    (workflow,) = convert(recording, "recording")
    assert [call.agent_id for call in workflow.calls] == ["a0", "a1"]


def test_a_recording_that_cannot_be_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status, message = refused(capsys, "--record", str(tmp_path / "nowhere" / "r.jsonl"))

    assert status == 1
    assert "cannot record to" in message


def test_a_port_in_use_is_one_clear_message(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = str(other.getsockname()[1])

        status, message = refused(capsys, "--port", port)

    assert status == 1
    assert f"cannot listen on 127.0.0.1 port {port}: it is in use" in message
    assert "--port" in message


def test_no_open_service_beyond_this_machine(capsys: pytest.CaptureFixture[str]) -> None:
    status, message = refused(capsys, "--host", "0.0.0.0")

    assert status == 2
    assert "KVFLOW_API_KEY" in message
    assert "--allow-open" in message


def test_every_wrong_option_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    status, message = refused(capsys, "--port", "99999", "--lease-s", "0", "--log-level", "loud")

    assert status == 2
    for option in ("--port", "--lease-s", "--log-level"):
        assert f"kvflow serve: {option}: " in message


def test_a_wrong_variable_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("KVFLOW_MAX_WORKFLOWS", "many")

    status, message = refused(capsys, "--port", "0")

    assert status == 2
    assert "kvflow serve: KVFLOW_MAX_WORKFLOWS: Input should be" in message


def test_all_addresses_of_a_host_share_one_port() -> None:
    sockets = listen("localhost", 0)

    try:
        assert len({one.getsockname()[1] for one in sockets}) == 1
    finally:
        for one in sockets:
            one.close()


def test_an_address_of_another_machine() -> None:
    with pytest.raises(EnvironmentProblemError, match="no such address"):
        listen("192.0.2.1", 0)


def test_a_port_is_taken_before_the_service_has_started() -> None:
    (first,) = listen("127.0.0.1", 0)

    with first, pytest.raises(EnvironmentProblemError, match="in use"):
        listen("127.0.0.1", first.getsockname()[1])
