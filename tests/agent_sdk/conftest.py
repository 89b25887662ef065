"""The real service, in a thread of the test process or as a process that can be killed."""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kvflow.agent_sdk import KVFlowClient, Workflow
from kvflow.agent_sdk.reporter import Reporter
from kvflow.agent_sdk.settings import ClientSettings
from kvflow.demo.service import ServiceProcess

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
def running_service(**settings: Any) -> Iterator[str]:
    from kvflow.server.settings import ServiceSettings
    from tests.server import running

    with running.running_service(ServiceSettings(log_level="error", **settings)) as service:
        yield service.url


@pytest.fixture
def service_process(tmp_path: Path) -> Iterator[ServiceProcess]:
    """A service to be killed and started again; it forgets all when it goes."""
    with ServiceProcess(tmp_path / "service.log") as process:
        yield process


def wait_until(condition, timeout_s: float = 60) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)


def refused_url() -> str:
    """An address of this machine where nothing listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{probe.getsockname()[1]}"
