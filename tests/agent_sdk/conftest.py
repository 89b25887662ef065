"""The real service, in a thread of the test process or as a process that can be killed."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import pytest

from kvflow.agent_sdk import KVFlowClient, Workflow
from kvflow.agent_sdk.reporter import Reporter
from kvflow.agent_sdk.settings import ClientSettings

RETRY_S = 0.05


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith("KVFLOW_") and name != "KVFLOW_SKIP_OPENAI3":
            monkeypatch.delenv(name)


@pytest.fixture
def service_url() -> Iterator[str]:
    with running_service() as url:
        yield url


@pytest.fixture
def client(service_url: str) -> Iterator[KVFlowClient]:
    with KVFlowClient(service_url, timeout_s=10) as client:
        yield client


@pytest.fixture
def reporter(service_url: str) -> Iterator[Reporter]:
    with running_reporter(service_url) as reporter:
        yield reporter


@pytest.fixture
def workflow(reporter: Reporter) -> Workflow:
    """An empty workflow to be decorated."""
    return Workflow("test", reporter=reporter)


@contextlib.contextmanager
def running_reporter(url: str, *, timeout_s: float = 10) -> Iterator[Reporter]:
    reporter = Reporter(ClientSettings(url=url, timeout_s=timeout_s), retry_s=RETRY_S)
    try:
        yield reporter
    finally:
        reporter.stop(timeout_s)


@contextlib.contextmanager
def running_service(**settings: object) -> Iterator[str]:
    from kvflow.server.app import build_service
    from kvflow.server.run import ServiceServer, listen
    from kvflow.server.settings import ServiceSettings

    service_settings = ServiceSettings(port=0, log_level="error", **settings)
    sockets = listen(service_settings.host, 0)
    server = ServiceServer(build_service(service_settings), service_settings)
    thread = threading.Thread(target=server.run, kwargs={"sockets": sockets})
    thread.start()
    try:
        yield f"http://127.0.0.1:{sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()


class ServiceProcess:
    """``kvflow.server`` as a process on a port of its own, to be killed and started again."""

    def __init__(self) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self._process = subprocess.Popen(
            [
                sys.executable,
                "-c",
                "import sys; from kvflow.server.run import run; "
                "from kvflow.server.settings import ServiceSettings; "
                "run(ServiceSettings(port=int(sys.argv[1]), log_level='warning'))",
                str(self.port),
            ]
        )
        with KVFlowClient(self.url) as client:
            wait_until(lambda: _is_ready(client))

    def kill(self) -> None:
        if self._process is not None:
            self._process.send_signal(signal.SIGKILL)
            self._process.wait()
            self._process = None


@pytest.fixture
def service_process() -> Iterator[ServiceProcess]:
    process = ServiceProcess()
    process.start()
    yield process
    process.kill()


def wait_until(condition, timeout_s: float = 60) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)


def _is_ready(client: KVFlowClient) -> bool:
    from kvflow.errors import ServiceUnreachableError

    try:
        return client.ready()
    except ServiceUnreachableError:
        return False


def refused_url() -> str:
    """An address of this machine where nothing listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{probe.getsockname()[1]}"
