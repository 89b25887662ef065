"""What a subscription says when, without a network."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import pytest

from kvflow.protocol import Delta, Heartbeat, Snapshot
from kvflow.server.event_bus import EventBus
from kvflow.server.metrics import ServiceMetrics
from kvflow.server.store import WorkflowRecord
from kvflow.server.stream import EngineStreams
from kvflow.server.subscription import Subscription
from tests.server.workflow_bodies import record


@pytest.fixture
def streams() -> EngineStreams:
    metrics = ServiceMetrics()
    return EngineStreams(
        lease_s=10.0, heartbeat_s=60.0, clock=lambda: 0.0, metrics=metrics, bus=EventBus(metrics)
    )


def parse(message: bytes) -> tuple[str, Snapshot | Delta | Heartbeat]:
    lines = message.decode().split("\n")
    assert [line.partition(": ")[0] for line in lines] == ["id", "event", "data", "", ""]
    identity, event, data = (line.partition(": ")[2] for line in lines[:3])
    models = {"snapshot": Snapshot, "delta": Delta, "heartbeat": Heartbeat}
    parsed = models[event].model_validate_json(data)
    assert int(identity) == parsed.seq
    return event, parsed


async def delta(subscription: Subscription) -> Delta:
    return parse_delta(await made(subscription.next_message()))


async def made(message: Awaitable[Callable[[], bytes] | None]) -> bytes:
    make = await asyncio.wait_for(message, 5)
    assert make is not None
    return make()


def parse_delta(content: bytes) -> Delta:
    event, message = parse(content)
    assert event == "delta"
    assert isinstance(message, Delta)
    return message


def snapshot(subscription: Subscription) -> Snapshot:
    event, message = parse(subscription.snapshot())
    assert event == "snapshot"
    assert isinstance(message, Snapshot)
    return message


def advanced(old: WorkflowRecord) -> WorkflowRecord:
    state = old.state.copy()
    state.start(old.graph.agent_ids[0])
    return replace(old, state=state)


def ids(message: Snapshot | Delta) -> list[str]:
    return [one.workflow_id for one in message.workflows]


async def test_snapshot_then_deltas(streams: EngineStreams) -> None:
    streams.publish(record("w"))
    with streams.subscribe("e") as subscription:
        first = snapshot(subscription)
        assert first.model_dump() == {
            "seq": 0,
            "lease_s": 10.0,
            "workflows": [
                {
                    "client_id": "c",
                    "workflow_id": "w",
                    "version": 0,
                    "ttl_s": 100.0,
                    "steps_to_execution": {"a": 1},
                    "fixed_prefix_tokens": {"a": 7},
                }
            ],
            "more": False,
        }

        streams.publish(record("v"))
        streams.publish(advanced(record("w")))
        second = await delta(subscription)

        assert (second.seq, ids(second), second.closed) == (1, ["v", "w"], [])
        assert second.workflows[1].version == 1
        assert second.workflows[1].steps_to_execution == {"a": 0}
        streams.close(("c", "w"))
        third = await delta(subscription)
        assert (third.seq, ids(third)) == (2, [])
        assert [(one.client_id, one.workflow_id) for one in third.closed] == [("c", "w")]


async def test_many_changes_go_out_as_one_state(streams: EngineStreams) -> None:
    with streams.subscribe("e") as subscription:
        snapshot(subscription)
        workflow = record("w")
        for _ in range(100):
            workflow = advanced(workflow)
            streams.publish(workflow)
        assert subscription.pending == 1

        only = await delta(subscription)

        assert [one.version for one in only.workflows] == [100]
        assert subscription.pending == 0


async def test_the_state_is_taken_when_the_message_is_made(streams: EngineStreams) -> None:
    with streams.subscribe("e") as subscription:
        snapshot(subscription)
        streams.publish(record("w"))
        make = await subscription.next_message()
        streams.publish(advanced(record("w")))
        assert make is not None

        _, message = parse(make())

        assert isinstance(message, Delta)
        assert [one.version for one in message.workflows] == [1]
        assert subscription.pending == 0


async def test_closed_and_created_anew_is_told_as_both(streams: EngineStreams) -> None:
    streams.publish(advanced(record("w")))
    with streams.subscribe("e") as subscription:
        snapshot(subscription)
        streams.close(("c", "w"))
        streams.publish(record("w"))
        streams.publish(record("w", client_id="other"))

        message = await delta(subscription)

        assert [one.workflow_id for one in message.closed] == ["w"]
        assert [(one.client_id, one.version) for one in message.workflows] == [
            ("c", 0),
            ("other", 0),
        ]
        streams.publish(advanced(record("w")))
        assert (await delta(subscription)).closed == []


async def test_a_stuck_engine_costs_no_memory_for_what_comes_and_goes(
    streams: EngineStreams,
) -> None:
    streams.publish(record("known"))
    with streams.subscribe("e") as subscription:
        snapshot(subscription)
        for i in range(1000):
            streams.publish(record(f"w{i}"))
            streams.close(("c", f"w{i}"))
        streams.close(("c", "known"))

        assert subscription.pending == 1
        message = await delta(subscription)
        assert [one.workflow_id for one in message.closed] == ["known"]


async def test_a_large_first_state_comes_in_parts(streams: EngineStreams) -> None:
    name = "a" * 200
    for i in range(2000):
        streams.publish(record(f"w{i}", agent_id=name))
    with streams.subscribe("e") as subscription:
        message: Snapshot | Delta = snapshot(subscription)
        seen = ids(message)
        assert message.more
        # A change of what was sent already must wait for its turn, and not be lost.
        streams.publish(advanced(record("w0", agent_id=name)))
        streams.close(("c", "w1999"))
        seq = 0
        while message.more:
            message = await delta(subscription)
            seq += 1
            assert message.seq == seq
            assert message.closed == []
            seen += ids(message)
            assert len(message.model_dump_json()) < 2 * 128 * 1024

        assert seq > 1
        assert seen == [f"w{i}" for i in range(1999)] + ["w0"]
        assert subscription.pending == 0


async def test_the_first_state_ends_even_if_its_rest_was_closed(streams: EngineStreams) -> None:
    for i in range(2000):
        streams.publish(record(f"w{i}", agent_id="a" * 200))
    with streams.subscribe("e") as subscription:
        first = snapshot(subscription)
        assert first.more
        for i in range(len(first.workflows), 2000):
            streams.close(("c", f"w{i}"))

        message = await delta(subscription)

        assert (message.workflows, message.closed, message.more) == ([], [], False)


async def test_heartbeat_when_nothing_happens(streams: EngineStreams) -> None:
    streams.heartbeat_s = 0.01
    with streams.subscribe("e") as subscription:
        snapshot(subscription)

        for seq in (1, 2):
            make = await asyncio.wait_for(subscription.next_message(), 5)
            assert make is not None
            event, message = parse(make())
            assert (event, message.seq) == ("heartbeat", seq)


async def test_shut_down_ends_streams_now_and_later(streams: EngineStreams) -> None:
    with streams.subscribe("e") as subscription:
        snapshot(subscription)
        waiting = asyncio.create_task(subscription.next_message())
        await asyncio.sleep(0)
        streams.shut_down()
        assert await asyncio.wait_for(waiting, 5) is None
    with streams.subscribe("late") as subscription:
        snapshot(subscription)
        assert await asyncio.wait_for(subscription.next_message(), 5) is None


async def test_engines_have_names(streams: EngineStreams) -> None:
    with streams.subscribe("mine"), streams.subscribe(None), streams.subscribe("mine"):
        assert [one.engine_id for one in streams.subscriptions] == ["mine", "engine-2", "mine"]
    assert streams.subscriptions == ()


async def test_unknown_fields_are_ignored_by_receivers(streams: EngineStreams) -> None:
    streams.publish(record("w"))
    with streams.subscribe("e") as subscription:
        message: dict[str, Any] = json.loads(subscription.snapshot().decode().split("data: ")[1])
    assert Snapshot.model_validate(message | {"new_in_a_later_version": 1}).workflows


async def test_one_encoding_serves_all_engines(
    streams: EngineStreams, monkeypatch: pytest.MonkeyPatch
) -> None:
    computed = 0
    wire_steps: Callable[[WorkflowRecord], dict[str, int | None]] = WorkflowRecord.wire_steps

    def counted(self: WorkflowRecord) -> dict[str, int | None]:
        nonlocal computed
        computed += 1
        return wire_steps(self)

    monkeypatch.setattr(WorkflowRecord, "wire_steps", counted)
    streams.publish(record("w"))
    for _ in range(5):
        with streams.subscribe(None) as subscription:
            snapshot(subscription)
    assert computed == 1


class Writer:
    """A connection that takes messages while it is free."""

    def __init__(self) -> None:
        self.free = True
        self.written: list[bytes] = []

    def is_free(self) -> bool:
        return self.free

    def write(self, message: bytes) -> None:
        self.written.append(message)


async def connected(
    subscription: Subscription, writer: Writer | None
) -> asyncio.Task[Callable[[], bytes] | None]:
    """Has the snapshot; the answer is what its sender waits for."""
    subscription.direct = writer
    snapshot(subscription)
    sender = asyncio.create_task(subscription.next_message())
    await asyncio.sleep(0)
    return sender


async def test_while_its_connection_is_free_it_is_told_without_the_sender(
    streams: EngineStreams,
) -> None:
    writer = Writer()
    with streams.subscribe("e") as subscription:
        sender = await connected(subscription, writer)

        for count in (1, 2):
            streams.publish(record(f"w{count}"))
            await asyncio.sleep(0.01)
            assert len(writer.written) == count
        assert not sender.done()
        assert [ids(parse_delta(one)) for one in writer.written] == [["w1"], ["w2"]]

        writer.free = False
        streams.publish(record("w3"))
        message = parse_delta(await made(sender))
        assert (message.seq, ids(message)) == (3, ["w3"])
        assert len(writer.written) == 2


async def test_all_who_are_told_without_a_sender_get_every_change_in_sequence(
    streams: EngineStreams,
) -> None:
    writers = [Writer() for _ in range(50)]
    with ExitStack() as open_ones:
        senders = []
        for writer in writers:
            subscription = open_ones.enter_context(streams.subscribe(None))
            senders.append(await connected(subscription, writer))
        workflow = record("w")
        for _ in range(20):
            # Falls into the middle of a round.
            await asyncio.sleep(0)
            workflow = advanced(workflow)
            streams.publish(workflow)
        await asyncio.sleep(0.05)

        for writer in writers:
            messages = [parse_delta(one) for one in writer.written]
            assert [one.seq for one in messages] == list(range(1, len(messages) + 1))
            versions = [one.workflows[0].version for one in messages]
            assert versions == sorted(set(versions))
            assert versions[-1] == 20
        for sender in senders:
            sender.cancel()


async def test_a_long_message_goes_on_with_the_sender(streams: EngineStreams) -> None:
    writer = Writer()
    with streams.subscribe("e") as subscription:
        sender = await connected(subscription, writer)
        for i in range(2000):
            streams.publish(record(f"w{i}", agent_id="a" * 200))

        following = await made(sender)
        assert len(writer.written) == 1
        seen = ids(parse_delta(writer.written[0])) + ids(parse_delta(following))
        while subscription.pending:
            seen += ids(await delta(subscription))
        assert seen == [f"w{i}" for i in range(2000)]


async def test_messages_past_the_sender_put_the_heartbeat_off(streams: EngineStreams) -> None:
    streams.heartbeat_s = 1.5
    writer = Writer()
    with streams.subscribe("e") as subscription:
        sender = await connected(subscription, writer)
        for count in range(8):
            await asyncio.sleep(0.25)
            streams.publish(record(f"w{count}"))
        await asyncio.sleep(0)
        assert not sender.done()
        assert parse(await made(sender))[0] == "heartbeat"


@pytest.mark.parametrize("direct", [False, True])
async def test_a_workflow_that_came_and_went_says_nothing(
    streams: EngineStreams, direct: bool
) -> None:
    writer = Writer()
    with streams.subscribe("e") as subscription:
        sender = await connected(subscription, writer if direct else None)

        streams.publish(record("w"))
        streams.close(("c", "w"))
        await asyncio.sleep(0.05)
        assert not sender.done()
        assert not writer.written

        streams.publish(record("w"))
        await asyncio.sleep(0.05)
        told = writer.written[0] if direct else (sender.result() or bytes)()
        assert ids(parse_delta(told)) == ["w"]
        sender.cancel()
