"""kill -9 under load loses nothing that was acknowledged."""

from __future__ import annotations

import os
import random
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.service.killing import Client, LostError, kill_once
from benchmarks.service.served import SERVE, Served

KILLS = 200 if os.environ.get("KVFLOW_SOAK") == "1" else 5
CLIENTS = 8


def clients(rng: random.Random) -> list[Client]:
    return [Client(f"w{i}", random.Random(rng.random())) for i in range(CLIENTS)]


@pytest.fixture
def served(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Served]:
    served = Served(str(tmp_path / "workflows.db"), tmp_path / "log", request.param)
    served.start()
    yield served
    served.kill()


@pytest.mark.timeout(60 + 10 * KILLS)
@pytest.mark.parametrize("served", [SERVE], indirect=True)
def test_nothing_acknowledged_is_lost(served: Served) -> None:
    rng = random.Random(20261124)
    everyone = clients(rng)
    for _ in range(KILLS):
        kill_once(served, everyone, rng.uniform(0.02, 0.4))
    assert min(one.acknowledged for one in everyone) > 0


HASTY = (sys.executable, "-m", "tests.server.durability.hasty_serve")


@pytest.mark.parametrize("served", [HASTY], indirect=True)
def test_a_service_that_acknowledges_too_early_is_found_out(served: Served) -> None:
    with pytest.raises(LostError, match="acknowledged"):
        kill_once(served, clients(random.Random(1)), 1.0)
