"""What was begun is brought to its end, whoever hangs up."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from kvflow.protocol import StepEvent, WorkflowSpec
from kvflow.server import ServiceSettings, build_service
from kvflow.server.finishing import finished
from kvflow.server.store import MemoryStore, WorkflowRecord
from tests.server.workflow_bodies import cycle, started


class SlowStore(MemoryStore):
    """Takes an update only when it may."""

    def __init__(self) -> None:
        super().__init__(10)
        self.writing = asyncio.Event()
        self.may = asyncio.Event()

    async def update(self, record: WorkflowRecord, events: Sequence[StepEvent]) -> None:
        self.writing.set()
        await self.may.wait()
        await super().update(record, events)


async def test_a_client_that_hangs_up_leaves_store_and_engines_in_step() -> None:
    store = SlowStore()
    service = build_service(ServiceSettings(), store=store)
    workflows = service.workflows
    await workflows.create(WorkflowSpec.model_validate(cycle()))
    event = StepEvent.model_validate(started("a0"))
    with service.streams.subscribe("e") as subscription:
        subscription.snapshot()
        first = asyncio.create_task(workflows.apply("w", [event]))
        await store.writing.wait()
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
        second = asyncio.create_task(workflows.apply("w", [event]))
        await asyncio.sleep(0.01)
        # The lock is held until the first one's write has ended.
        assert not second.done()
        store.may.set()
        assert (await second).record.version == 2
        make = await subscription.next_message()
        assert make is not None
        assert b'"version":2' in make()


async def test_an_error_after_the_caller_has_gone_is_no_news() -> None:
    going, may_fail = asyncio.Event(), asyncio.Event()

    async def fail() -> None:
        going.set()
        await may_fail.wait()
        raise ValueError

    task = asyncio.create_task(finished(fail()))
    await going.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    may_fail.set()
    await asyncio.sleep(0)
    await asyncio.sleep(0)


async def test_errors_and_results_come_back() -> None:
    async def one() -> int:
        return 1

    async def wrong() -> None:
        raise ValueError("wrong")

    assert await finished(one()) == 1
    with pytest.raises(ValueError, match="wrong"):
        await finished(wrong())
