"""kill -9 under load loses nothing that was acknowledged."""

from __future__ import annotations

import os
import random
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.service.killing import Client, LostError, kill_once
from kvflow.demo.service import SERVE, ServiceProcess

KILLS = 200 if os.environ.get("KVFLOW_SOAK") == "1" else 5
CLIENTS = 8


def clients(rng: random.Random) -> list[Client]:
    return [Client(f"w{i}", random.Random(rng.random())) for i in range(CLIENTS)]


@pytest.fixture
def service(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[ServiceProcess]:
    database = str(tmp_path / "workflows.db")
    with ServiceProcess(tmp_path / "log", "--database", database, command=request.param) as service:
        yield service


@pytest.mark.timeout(60 + 10 * KILLS)
@pytest.mark.parametrize("service", [SERVE], indirect=True)
def test_nothing_acknowledged_is_lost(service: ServiceProcess) -> None:
    rng = random.Random(20261124)
    everyone = clients(rng)
    for _ in range(KILLS):
        kill_once(service, everyone, rng.uniform(0.02, 0.4))
    assert min(one.acknowledged for one in everyone) > 0


HASTY = (sys.executable, "-m", "tests.server.durability.hasty_serve")


@pytest.mark.parametrize("service", [HASTY], indirect=True)
def test_a_service_that_acknowledges_too_early_is_found_out(service: ServiceProcess) -> None:
    with pytest.raises(LostError, match="acknowledged"):
        kill_once(service, clients(random.Random(1)), 1.0)
