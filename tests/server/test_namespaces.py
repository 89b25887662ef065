"""The same workflow_id in several namespaces."""

from __future__ import annotations

import pytest

from kvflow.errors import WorkflowNotFoundError
from kvflow.protocol import StepEvent, WorkflowSpec
from kvflow.server import Service
from tests.server.workflow_bodies import cycle, started


async def test_each_namespace_has_ids_of_its_own(service: Service) -> None:
    workflows = service.workflows
    for namespace, agents in [("alice", 2), ("bob", 3)]:
        spec = WorkflowSpec.model_validate(cycle(agents=agents, client_id="someone"))
        record, created = await workflows.create(spec, namespace=namespace)
        assert created
        assert record.stream_key == (namespace, "w")

    event = StepEvent.model_validate(started("a0"))
    await workflows.apply("w", [event], namespace="bob")

    assert (await workflows.get("w", namespace="alice")).version == 0
    assert (await workflows.get("w", namespace="bob")).version == 1
    with pytest.raises(WorkflowNotFoundError):
        await workflows.get("w")
    with pytest.raises(WorkflowNotFoundError):
        await workflows.apply("w", [event])
    await workflows.delete("w", namespace="bob")
    with pytest.raises(WorkflowNotFoundError):
        await workflows.delete("w", namespace="bob")
    assert len((await workflows.get("w", namespace="alice")).graph.agents) == 2


async def test_pages_of_one_namespace_and_of_all(service: Service) -> None:
    workflows = service.workflows
    for namespace, name in [("b", "v"), ("b", "w"), ("a", "w"), ("", "w"), ("", "z")]:
        await workflows.create(WorkflowSpec.model_validate(cycle(name)), namespace=namespace)

    async def pages(namespace: str | None) -> list[tuple[str, str]]:
        found, after = [], None
        while True:
            page, after = await workflows.page(
                client_id=None, after=after, limit=2, namespace=namespace
            )
            found += [record.key for record in page]
            if after is None:
                return found

    assert await pages("") == [("", "w"), ("", "z")]
    assert await pages("b") == [("b", "v"), ("b", "w")]
    assert await pages("c") == []
    assert await pages(None) == [("", "w"), ("", "z"), ("a", "w"), ("b", "v"), ("b", "w")]


async def test_engines_are_told_which_client(service: Service) -> None:
    with service.streams.subscribe("e") as subscription:
        subscription.snapshot()
        for namespace in ("alice", "bob"):
            spec = WorkflowSpec.model_validate(cycle())
            await service.workflows.create(spec, namespace=namespace)
        make = await subscription.next_message()
        assert make is not None
        message = make()
    for namespace in (b"alice", b"bob"):
        assert b'"client_id":"' + namespace + b'","workflow_id":"w"' in message
