"""What a scheduler process knows about workflows, message by message."""

from __future__ import annotations

import math
from array import array
from collections.abc import Hashable

import pytest

from kvflow.eviction import Conversation, Owner
from kvflow.protocol import RequestMetadata
from kvflow.sglang_plugin.control import LeaseLost, ServiceUpdate, Tick, WorkflowUpdate
from kvflow.sglang_plugin.weights import WorkflowWeights

W1 = ("c", "w1")
W2 = ("c", "w2")


class Recorder:
    def __init__(self) -> None:
        self.changed: list[Owner[Hashable]] = []
        self.dropped: list[Owner[Hashable]] = []
        self.weights = WorkflowWeights(self.changed.append, self.dropped.append)


@pytest.fixture
def seen() -> Recorder:
    return Recorder()


def update(key: tuple[str, str], version: int = 1, **steps: float) -> WorkflowUpdate:
    return WorkflowUpdate(key, version, steps, {})


def in_band(
    workflow_id: str, ttl_s: float = 600, version: int | None = None, **steps: int | None
) -> RequestMetadata:
    return RequestMetadata(
        workflow_id=workflow_id,
        agent_id="a",
        client_id="c",
        ttl_s=ttl_s,
        version=version,
        steps_to_execution=steps,
    )


def test_owner_gets_the_minimum_over_workflows_and_follows_it(seen: Recorder) -> None:
    owner = seen.weights.prefix_owner("c", "a", None)
    assert owner.steps == math.inf
    seen.weights.apply(ServiceUpdate((update(W1, a=5), update(W2, a=3))))
    assert owner.steps == 3
    assert seen.weights.apply(ServiceUpdate(closed=(W2,))) == [W2]
    assert owner.steps == 5
    assert seen.changed == [owner, owner, owner]


def test_unchanged_steps_are_not_reported(seen: Recorder) -> None:
    seen.weights.prefix_owner("c", "a", None)
    seen.weights.apply(ServiceUpdate((update(W1, a=5),)))
    seen.changed.clear()
    seen.weights.apply(ServiceUpdate((update(W1, version=2, a=5),)))
    assert seen.changed == []


def test_closed_and_created_anew_in_one_message_is_live(seen: Recorder) -> None:
    seen.weights.apply(ServiceUpdate((update(W1, version=9, a=5),)))
    seen.weights.apply(ServiceUpdate((update(W1, version=0, a=2),), closed=(W1,)))
    assert seen.weights.is_live(W1)
    assert seen.weights.prefix_owner("c", "a", None).steps == 2


def test_snapshot_in_parts_drops_the_rest_at_its_end_only(seen: Recorder) -> None:
    seen.weights.apply(ServiceUpdate((update(W1, a=5), update(W2, b=1))))
    begins = ServiceUpdate((update(W1, version=2, a=4),), snapshot_begins=True)
    assert seen.weights.apply(begins) == []
    assert seen.weights.is_live(W2)
    assert seen.weights.apply(ServiceUpdate(snapshot_ends=True)) == [W2]
    assert not seen.weights.is_live(W2)


def test_lost_lease_takes_the_services_weights_and_leaves_the_in_band_ones(seen: Recorder) -> None:
    seen.weights.apply(ServiceUpdate((update(W1, a=5),)))
    seen.weights.apply_in_band(in_band("w2", b=1))
    assert seen.weights.lease_held
    seen.weights.apply(LeaseLost())
    assert not seen.weights.lease_held
    assert seen.weights.prefix_owner("c", "a", None).steps == math.inf
    assert seen.weights.prefix_owner("c", "b", None).steps == 1


def test_in_band_values_expire_by_the_shared_clock(seen: Recorder) -> None:
    seen.weights.apply_in_band(in_band("w1", ttl_s=30, a=2))
    assert seen.weights.needs_ticks
    assert seen.weights.apply(Tick(1_000_000.0)) == []
    assert seen.weights.apply(Tick(1_000_029.0)) == []
    seen.weights.apply_in_band(in_band("w1", ttl_s=30, a=1))
    assert seen.weights.apply(Tick(1_000_031.0)) == []
    assert seen.weights.apply(Tick(1_000_061.0)) == [W1]
    assert not seen.weights.needs_ticks
    assert seen.weights.prefix_owner("c", "a", None).steps == math.inf


def test_older_version_never_replaces_newer(seen: Recorder) -> None:
    owner = seen.weights.prefix_owner("c", "a", None)
    seen.weights.apply_in_band(in_band("w1", version=7, a=2))
    seen.weights.apply_in_band(in_band("w1", version=6, a=9))
    assert owner.steps == 2
    seen.weights.apply(ServiceUpdate((update(W1, version=8, a=4),)))
    seen.weights.apply_in_band(in_band("w1", version=8, a=9))
    seen.weights.apply_in_band(in_band("w1", a=9))
    assert owner.steps == 4
    seen.weights.apply_in_band(in_band("w1", version=9, a=1))
    assert owner.steps == 1


def test_history_follows_its_own_workflow_and_ends_with_it(seen: Recorder) -> None:
    conversation = Conversation(array("q", [1, 2]), 1)
    seen.weights.apply(ServiceUpdate((update(W1, a=5), update(W2, a=1))))
    owner = seen.weights.history_owner(W1, "a", conversation)
    assert owner.steps == 5
    seen.weights.apply(ServiceUpdate((update(W1, version=2, a=4),)))
    assert owner.steps == 4
    seen.weights.apply(ServiceUpdate(closed=(W1,)))
    assert seen.dropped == [owner]
    assert seen.weights.history_owner(W1, "a", conversation) is not owner


def test_namespaces_are_kept_apart_and_weighed_alike(seen: Recorder) -> None:
    owners = [seen.weights.prefix_owner("c", "a", space) for space in ("lora-1", "lora-2")]
    assert owners[0] is not owners[1]
    seen.weights.apply(ServiceUpdate((update(W1, a=3),)))
    assert [owner.steps for owner in owners] == [3, 3]


def test_agents_known_are_bounded(seen: Recorder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kvflow.sglang_plugin.weights.MAX_AGENTS", 3)
    first = seen.weights.prefix_owner("c", "a0", None)
    for number in range(1, 4):
        seen.weights.prefix_owner("c", f"a{number}", None)
    assert seen.dropped == [first]
    seen.weights.apply(ServiceUpdate((update(W1, a0=1),)))
    assert seen.changed == []
