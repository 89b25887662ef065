"""A run is measured once, however often its events have to be applied."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from starlette.testclient import TestClient

from kvflow.graph.timing import FamilyDurations
from kvflow.protocol import StepEvent
from kvflow.server import ServiceSettings, build_service
from kvflow.server.learned.pending import PendingDurations
from kvflow.server.store import (
    MemoryStore,
    StoreConflictError,
    StoreUnavailableError,
    WorkflowRecord,
)
from tests.server.conftest import FakeClock
from tests.server.workflow_bodies import cycle, finished, started


class Refusing(MemoryStore):
    """Refuses some writes, as one that others write to, or whose disk is full."""

    def __init__(self) -> None:
        super().__init__(10)
        self.refusals: list[Exception] = []

    async def update(self, record: WorkflowRecord, events: Sequence[StepEvent]) -> None:
        if self.refusals:
            raise self.refusals.pop()
        await super().update(record, events)


@pytest.mark.parametrize(
    ("refusals", "statuses"),
    [
        ([StoreConflictError() for _ in range(20)], [200]),
        ([StoreUnavailableError("full"), StoreUnavailableError("full")], [503, 503, 200]),
    ],
)
def test_what_was_refused_teaches_nothing(
    refusals: list[Exception], statuses: list[int], clock: FakeClock
) -> None:
    store = Refusing()
    service = build_service(ServiceSettings(sweep_interval_s=3600), store=store, clock=clock)
    with TestClient(service.app) as client:
        client.post("/v1/workflows", json=cycle())
        clock.now_s += 1
        client.post("/v1/workflows/w/events", json=[started("a0"), started("a1")])
        store.refusals = list(refusals)
        clock.now_s += 2
        for status in statuses:
            answer = client.post("/v1/workflows/w/events", json=finished("a0"))
            assert answer.status_code == status
        known = service.workflows._orders.known("durations")["", "default", ""]
        assert known.revision == 1
        clock.now_s += 3
        client.post("/v1/workflows/w/events", json=[started("a1"), finished("a1")])
        assert known.revision == 3  # the pause before a1, and its first run


def test_it_answers_as_what_it_adds_to() -> None:
    known = FamilyDurations()
    pending = PendingDurations(known)
    assert pending.known is False
    known.learn_run("a", 2.0)
    known.learn_gap("a", "b", 1.0)
    pending.learn_run("a", 100.0)
    pending.learn_gap("a", "b", 100.0)
    assert pending.known is True
    for one in (known, pending):
        assert (one.run_s("a"), one.run_s("x"), one.run_s("x", 7.0)) == (2.0, 2.0, 7.0)
        assert (one.gap_s("a", "b"), one.gap_s("b", "a", 4.0)) == (1.0, 4.0)
        assert (one.measured_run_s("a"), one.measured_gap_s("a", "b")) == (2.0, 1.0)
    assert pending.hand_on() is known
    assert (known.run_s("a"), known.gap_s("a", "b")) == (51.0, 50.5)
