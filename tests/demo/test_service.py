from __future__ import annotations

from pathlib import Path

import pytest

from kvflow.agent_sdk import KVFlowClient
from kvflow.demo.service import ServiceProcess
from kvflow.errors import EnvironmentProblemError, ServiceUnreachableError

pytest.importorskip("fastapi")
pytest.importorskip("typer")


def test_the_service_is_up_inside_the_block_and_gone_after_it(tmp_path: Path) -> None:
    with (
        ServiceProcess(tmp_path / "logs" / "service.log") as service,
        KVFlowClient(service.url) as client,
    ):
        assert client.ready()
    with KVFlowClient(service.url) as client, pytest.raises(ServiceUnreachableError):
        client.ready()


def test_a_service_that_cannot_start_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KVFLOW_LEASE_S", "-1")
    log = tmp_path / "service.log"
    with pytest.raises(EnvironmentProblemError) as caught, ServiceProcess(log):
        pass
    assert "exit status 2" in caught.value.problem
    assert "KVFLOW_LEASE_S" in caught.value.problem
    assert str(log) in caught.value.remedy
