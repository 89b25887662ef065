"""Which run a step belongs to, in threads, tasks, and blocks within blocks."""

from __future__ import annotations

import asyncio
import contextvars
import logging
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from kvflow.agent_sdk import KVFlowClient, Workflow, current_step, request_metadata
from kvflow.agent_sdk import run as run_module
from kvflow.agent_sdk.reporter import Reporter
from kvflow.errors import AgentNotFoundError, ConflictError
from kvflow.protocol import RequestMetadata


@pytest.fixture(autouse=True)
def _nothing_warned_yet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_module, "_warned", set())


@pytest.fixture
def workflow(reporter: Reporter) -> Workflow:
    return Workflow("two", agents=["a", {"agent_id": "b", "fixed_prefix_tokens": 9}],
                    edges=[("a", "b")], reporter=reporter)  # fmt: skip


def here(workflow: Workflow) -> str:
    """The workflow_id a step gets here."""
    with workflow.step("a") as step:
        assert current_step() is step
        return step.workflow_id


def test_the_current_step(workflow: Workflow) -> None:
    assert current_step() is None
    assert request_metadata() == {}
    with workflow.run() as run:
        assert current_step() is None
        with run.step("b") as step:
            assert current_step() is step
            assert (step.workflow_id, step.agent_id, step.client_id) == (
                run.workflow_id, "b", "default",
            )  # fmt: skip
            assert request_metadata() == {
                "kvflow": {
                    "workflow_id": run.workflow_id,
                    "agent_id": "b",
                    "client_id": "default",
                    "steps_reported": True,
                    "fixed_prefix_tokens": 9,
                }
            }
            RequestMetadata.model_validate(request_metadata()["kvflow"])
            with run.step("a") as inner:
                assert current_step() is inner
                assert "fixed_prefix_tokens" not in request_metadata()["kvflow"]
            assert current_step() is step
    assert current_step() is None


def test_every_run_has_an_id_that_tells_its_name(workflow: Workflow) -> None:
    with workflow.run() as one, workflow.run() as two:
        assert one.workflow_id != two.workflow_id
        assert one.workflow_id.startswith("two-")
    with workflow.run("chosen") as run:
        assert run.workflow_id == "chosen"


def test_runs_within_runs(workflow: Workflow, reporter: Reporter) -> None:
    other = Workflow("other", agents=["a"], reporter=reporter)
    with workflow.run() as outer:
        assert here(workflow) == outer.workflow_id
        with other.run() as others, workflow.run() as inner:
            assert here(workflow) == inner.workflow_id
            assert here(other) == others.workflow_id
        assert here(workflow) == outer.workflow_id


async def test_tasks_stay_apart(workflow: Workflow, client: KVFlowClient) -> None:
    async def one_run(n: int) -> None:
        async with workflow.run() as run:
            for _ in range(3):
                with workflow.step("a") as step:
                    await asyncio.sleep(0)
                    assert current_step() is step
                    assert step.workflow_id == run.workflow_id
                    assert await asyncio.to_thread(current_step) is step
            assert await asyncio.to_thread(run.flush)
            view = await asyncio.to_thread(client.get_workflow, run.workflow_id)
            assert view.steps_started == 3

    await asyncio.gather(*(one_run(n) for n in range(10)))
    assert list(client.list_workflows()) == []


def test_threads_stay_apart(workflow: Workflow) -> None:
    barrier = threading.Barrier(4)

    def one_run() -> bool:
        with workflow.run() as run:
            barrier.wait(30)
            return here(workflow) == run.workflow_id

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(lambda _: one_run(), range(4)))


def test_a_pool_needs_the_context_or_activate(
    workflow: Workflow, caplog: pytest.LogCaptureFixture
) -> None:
    with ThreadPoolExecutor(1) as pool, workflow.run() as run:
        in_context = contextvars.copy_context()
        assert pool.submit(in_context.run, here, workflow).result() == run.workflow_id

        def activated() -> str:
            with run.activate():
                return here(workflow)

        assert pool.submit(activated).result() == run.workflow_id
        assert caplog.records == []

        for _ in range(2):
            assert pool.submit(here, workflow).result() != run.workflow_id
        (record,) = caplog.records
        assert "copy_context" in record.getMessage()
    assert here(workflow) != run.workflow_id


def test_outside_any_run_there_is_a_default_one(
    workflow: Workflow, client: KVFlowClient, caplog: pytest.LogCaptureFixture
) -> None:
    first = here(workflow)
    assert here(workflow) == first
    workflow.register()
    assert client.get_workflow(first).steps_started == 2
    workflow.close()
    assert list(client.list_workflows()) == []
    assert here(workflow) != first
    assert caplog.records == []


def test_threads_share_the_default_run(workflow: Workflow) -> None:
    barrier = threading.Barrier(8)

    def step(_: int) -> str:
        barrier.wait(30)
        return here(workflow)

    with ThreadPoolExecutor(8) as pool:
        assert len(set(pool.map(step, range(8)))) == 1


def test_exceptions_end_the_run(workflow: Workflow, client: KVFlowClient) -> None:
    def work() -> None:
        with workflow.run():
            here(workflow)
            raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        work()
    assert list(client.list_workflows()) == []


async def test_cancellation_ends_the_run(workflow: Workflow, client: KVFlowClient) -> None:
    started = asyncio.Event()

    async def work() -> None:
        async with workflow.run() as run:
            with run.step("a"):
                await asyncio.to_thread(run.flush)
                started.set()
                await asyncio.Event().wait()

    task = asyncio.create_task(work())
    await started.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await asyncio.to_thread(lambda: list(client.list_workflows())) == []


async def test_the_sync_form_does_not_wait_on_an_event_loop(workflow: Workflow) -> None:
    with workflow.run() as run:
        here(workflow)
        assert not run.close()
    assert await run.aclose()


def test_a_run_nobody_used_is_not_registered(workflow: Workflow, client: KVFlowClient) -> None:
    run = workflow.run()
    assert run.flush()
    assert run.close()
    assert list(client.list_workflows()) == []


def test_a_run_can_be_kept(workflow: Workflow, client: KVFlowClient) -> None:
    with workflow.run("kept", delete_on_close=False) as run:
        here(workflow)
    assert run.close()
    assert client.get_workflow("kept").steps_started == 1


def test_a_run_is_entered_once(workflow: Workflow) -> None:
    with workflow.run() as run, pytest.raises(ConflictError, match="activate"):
        run.__enter__()
    with pytest.raises(ConflictError), run:
        pass


def test_steps_after_the_end_are_not_reported(
    workflow: Workflow, caplog: pytest.LogCaptureFixture, client: KVFlowClient
) -> None:
    with workflow.run("ended") as run:
        pass
    caplog.set_level(logging.WARNING)
    for _ in range(2):
        with run.step("a"):
            assert current_step() is None
            assert request_metadata() == {}
    (record,) = caplog.records
    assert "'a'" in record.getMessage()
    assert "ended" in record.getMessage()
    assert list(client.list_workflows()) == []


def test_unknown_agent(workflow: Workflow) -> None:
    with workflow.run() as run, pytest.raises(AgentNotFoundError, match=r"'c'.*'a', 'b'"):
        run.step("c").__enter__()
