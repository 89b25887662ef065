"""What a scheduler process knows about workflows, message by message."""

from __future__ import annotations

import math
from array import array
from collections.abc import Hashable, Mapping
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvflow.eviction import Conversation, Owner
from kvflow.protocol import RequestMetadata
from kvflow.sglang_plugin.control import LeaseLost, ServiceUpdate, Tick, WorkflowUpdate
from kvflow.sglang_plugin.weights import NEAR_STEPS, WorkflowWeights

W1 = ("c", "w1")
W2 = ("c", "w2")
OTHER = ("d", "w1")


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


def test_choices_are_those_of_the_last_message(seen: Recorder) -> None:
    choices = {"a": {"b": 0.9, "c": 0.1}}
    told = WorkflowUpdate(W1, 1, {"a": 0, "b": 1, "c": 1}, {}, choices=choices)
    weights = seen.weights
    assert weights.choices(W1) == {}
    weights.apply(ServiceUpdate((told,)))
    assert weights.choices(W1) == choices
    weights.apply(ServiceUpdate((update(W1, version=2, b=0),)))
    assert weights.choices(W1) == {}
    for end in (ServiceUpdate(closed=(W1,)), LeaseLost()):
        weights.apply(ServiceUpdate((told,)))
        weights.apply(end)
        assert weights.choices(W1) == {}


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


@pytest.mark.parametrize("begins_with_it", [True, False])
def test_workflow_closed_within_a_snapshot_ends_once(seen: Recorder, begins_with_it: bool) -> None:
    seen.weights.apply(ServiceUpdate((update(W1, a=5), update(W2, a=3))))
    begins = ServiceUpdate(closed=(W1,) if begins_with_it else (), snapshot_begins=True)
    ends = ServiceUpdate(closed=() if begins_with_it else (W1,), snapshot_ends=True)
    ended = seen.weights.apply(begins) + seen.weights.apply(ends)
    assert ended == [W1, W2]


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


def conversation() -> Conversation:
    return Conversation(array("q", [1, 2]), 1)


def fail(weights: WorkflowWeights, times: int, key: tuple[str, str] = W1) -> None:
    """Agents call that nobody expected."""
    for number in range(times):
        weights.called(key, f"stranger{number}")


def succeed(weights: WorkflowWeights, times: int, key: tuple[str, str] = W1) -> None:
    """Agents call that are one step away, ``b`` and ``c`` in turn."""
    for number in range(times):
        weights.called(key, "bc"[number % 2])


class TestNearAgents:
    @pytest.mark.parametrize(
        ("steps", "near"),
        [(0, False), (1, True), (NEAR_STEPS, True), (NEAR_STEPS + 1, False), (math.inf, False)],
    )
    def test_near_is_between_one_step_and_the_horizon(
        self, seen: Recorder, steps: float, near: bool
    ) -> None:
        seen.weights.apply(ServiceUpdate((update(W1, a=steps),)))
        assert seen.weights.near_agents == ({("c", "a"): {W1: steps}} if near else {})

    def test_each_workflow_tells_how_far_an_agent_is(self, seen: Recorder) -> None:
        seen.weights.apply(ServiceUpdate((update(W1, a=2, b=0), update(W2, a=1))))
        seen.weights.apply(ServiceUpdate((update(OTHER, a=3),)))
        assert seen.weights.near_agents == {("c", "a"): {W1: 2, W2: 1}, ("d", "a"): {OTHER: 3}}
        seen.weights.apply(ServiceUpdate((update(W1, version=2, a=0, b=1),)))
        assert seen.weights.near_agents == {
            ("c", "a"): {W2: 1},
            ("c", "b"): {W1: 1},
            ("d", "a"): {OTHER: 3},
        }

    def test_nobody_is_near_in_a_workflow_that_ended(self, seen: Recorder) -> None:
        seen.weights.apply(ServiceUpdate((update(W1, a=1),)))
        seen.weights.apply_in_band(in_band("w2", b=1))
        seen.weights.apply(ServiceUpdate(closed=(W1,)))
        assert seen.weights.near_agents == {("c", "b"): {W2: 1}}
        seen.weights.apply(Tick(0.0))
        seen.weights.apply(Tick(600.0))
        assert seen.weights.near_agents == {}

    def test_nobody_is_near_after_a_lost_lease(self, seen: Recorder) -> None:
        seen.weights.apply(ServiceUpdate((update(W1, a=1),)))
        seen.weights.apply(LeaseLost())
        assert seen.weights.near_agents == {}


class TestOwners:
    def test_owners_of_are_the_agents_prefixes_and_its_histories_here(self, seen: Recorder) -> None:
        weights = seen.weights
        prefixes = [weights.prefix_owner("c", "a", space) for space in ("lora-1", "lora-2")]
        weights.prefix_owner("c", "b", None)
        weights.prefix_owner("d", "a", None)
        mine = weights.history_owner(W1, "a", conversation())
        weights.history_owner(W1, "b", conversation())
        weights.history_owner(W2, "a", conversation())
        assert set(weights.owners_of(("c", "a"), W1)) == {*prefixes, mine}
        assert weights.owners_of(("c", "nobody"), W1) == []

    def test_histories_are_those_of_one_workflow(self, seen: Recorder) -> None:
        said = conversation()
        mine = [seen.weights.history_owner(W1, agent, conversation()) for agent in "ab"]
        ended = seen.weights.history_owner(W1, "a", said)
        seen.weights.history_owner(W2, "a", conversation())
        assert set(seen.weights.histories(W1)) == {*mine, ended}
        seen.weights.drop_histories([said])
        assert set(seen.weights.histories(W1)) == set(mine)
        assert seen.weights.histories(("c", "unknown")) == []

    def test_a_number_finds_its_owner_as_long_as_there_is_one(self, seen: Recorder) -> None:
        said = conversation()
        prefix = seen.weights.prefix_owner("c", "a", None)
        history = seen.weights.history_owner(W1, "a", said)
        assert prefix.number != history.number
        assert seen.weights.owner(prefix.number) is prefix
        assert seen.weights.owner(history.number) is history
        seen.weights.drop_histories([said])
        assert seen.weights.owner(history.number) is None
        assert seen.weights.history_owner(W1, "a", said).number not in {
            prefix.number,
            history.number,
        }

    def test_prefix_nodes_are_those_that_live_workflows_will_read(self, seen: Recorder) -> None:
        for agent in "ab":
            seen.weights.prefix_owner("c", agent, None).nodes = {agent, "shared"}
        seen.weights.history_owner(W1, "a", conversation()).nodes = {"history"}
        seen.weights.apply(ServiceUpdate((update(W1, a=3, b=math.inf),)))
        assert seen.weights.prefix_nodes() == {"a", "shared"}


def test_running_and_live(seen: Recorder) -> None:
    seen.weights.apply(ServiceUpdate((update(W2, a=0, b=1, c=0), update(W1, a=1))))
    seen.weights.apply_in_band(in_band("w3", a=None, b=0))
    assert seen.weights.running(W2) == ["a", "c"]
    assert seen.weights.running(W1) == []
    assert list(seen.weights.live()) == [W2, W1, ("c", "w3")]
    seen.weights.apply(ServiceUpdate((update(W2, version=2, a=0, b=0, c=1),)))
    assert seen.weights.running(W2) == ["a", "b"]
    assert list(seen.weights.live()) == [W2, W1, ("c", "w3")]
    seen.weights.apply(LeaseLost())
    assert list(seen.weights.live()) == [("c", "w3")]
    assert seen.weights.running(W2) == []


def test_the_observer_hears_of_every_vector_and_of_every_end(seen: Recorder) -> None:
    heard: list[tuple[tuple[str, str], Mapping[str, float] | None]] = []

    class Observer:
        def steps_changed(self, key: tuple[str, str], steps: Mapping[str, float]) -> None:
            heard.append((key, steps))

        def ended(self, key: tuple[str, str]) -> None:
            heard.append((key, None))

    seen.weights.observer = Observer()
    seen.weights.apply(ServiceUpdate((update(W1, a=1),)))
    seen.weights.apply(ServiceUpdate((update(W1, version=2, a=1),)))
    seen.weights.apply_in_band(in_band("w2", b=None))
    seen.weights.apply(ServiceUpdate(closed=(W1,)))
    seen.weights.apply(Tick(0.0))
    seen.weights.apply(Tick(600.0))
    assert heard == [
        (W1, {"a": 1}),
        (W1, {"a": 1}),
        (W2, {"b": math.inf}),
        (W1, None),
        (W2, None),
    ]


class TestTrust:
    @pytest.fixture
    def weights(self, seen: Recorder) -> WorkflowWeights:
        seen.weights.apply(ServiceUpdate((update(W1, a=0, b=1, c=1), update(W2, z=2))))
        return seen.weights

    def test_nearness_goes_first_priorities_second_and_both_come_back(
        self, seen: Recorder, weights: WorkflowWeights
    ) -> None:
        owner = weights.prefix_owner("c", "b", None)
        history = weights.history_owner(W1, "b", conversation())

        def governs() -> tuple[bool, float, float]:
            return ("c", "b") in weights.near_agents, owner.steps, history.steps

        assert governs() == (True, 1, 1)
        fail(weights, 3)
        assert weights.trust.trust(W1) == "no_prefetch"
        assert governs() == (False, 1, 1)
        fail(weights, 2)
        assert weights.trust.trust(W1) == "none"
        assert governs() == (False, math.inf, math.inf)
        assert set(seen.changed) == {owner, history}
        succeed(weights, 2)
        assert weights.trust.trust(W1) == "no_prefetch"
        assert governs() == (False, 1, 1)
        succeed(weights, 3)
        assert weights.trust.trust(W1) == "full"
        assert governs() == (True, 1, 1)

    def test_other_families_keep_theirs(self, weights: WorkflowWeights) -> None:
        fail(weights, 9)
        assert weights.near_agents == {("c", "z"): {W2: 2}}
        assert weights.prefix_owner("c", "z", None).steps == 2

    def test_the_family_loses_it_together(self, weights: WorkflowWeights) -> None:
        sibling = ("c", "w3")
        weights.apply(ServiceUpdate((update(sibling, a=3, b=2, c=2),)))
        owner = weights.prefix_owner("c", "a", None)
        fail(weights, 9)
        assert owner.steps == math.inf
        assert weights.near_agents == {("c", "z"): {W2: 2}}
        newcomer = ("c", "w4")
        weights.apply(ServiceUpdate((update(newcomer, a=1, b=2, c=2),)))
        assert owner.steps == math.inf
        assert weights.is_live(newcomer)
        succeed(weights, 9)
        assert owner.steps == 0
        assert weights.near_agents["c", "a"] == {sibling: 3, newcomer: 1}

    def test_new_steps_stay_without_effect_until_trust_is_back(
        self, weights: WorkflowWeights
    ) -> None:
        owner = weights.prefix_owner("c", "b", None)
        fail(weights, 5)
        weights.apply(ServiceUpdate((update(W1, version=2, a=1, b=3, c=0),)))
        assert owner.steps == math.inf
        for _ in range(9):
            weights.apply(ServiceUpdate((update(W1, version=3, a=1, b=0, c=1),)))
            weights.apply(ServiceUpdate((update(W1, version=4, a=0, b=1, c=1),)))
        assert owner.steps == 1

    def test_a_distrusted_workflow_ends_like_any_other(
        self, seen: Recorder, weights: WorkflowWeights
    ) -> None:
        history = weights.history_owner(W1, "b", conversation())
        fail(weights, 9)
        assert weights.is_live(W1)
        assert weights.apply(ServiceUpdate(closed=(W1,))) == [W1]
        assert seen.dropped == [history]
        assert list(weights.live()) == [W2]

    def test_unused_prefetches_cost_nearness_alone(self, weights: WorkflowWeights) -> None:
        owner = weights.prefix_owner("c", "b", None)
        for _ in range(9):
            weights.prefetched(W1, used=False)
        assert ("c", "b") not in weights.near_agents
        assert owner.steps == 1
        for _ in range(9):
            weights.prefetched(W1, used=True)
        assert ("c", "b") in weights.near_agents

    def test_what_was_prefetched_for_a_workflow_that_ended_still_counts_for_its_family(
        self, weights: WorkflowWeights
    ) -> None:
        sibling = ("c", "w3")
        weights.apply(ServiceUpdate((update(sibling, a=0, b=1, c=1),), closed=(W1,)))
        for _ in range(9):
            weights.prefetched(W1, used=False)
        assert ("c", "b") not in weights.near_agents

    @pytest.mark.parametrize(("version", "misses"), [(2, 1), (3, 1), (4, 0), (9, 0)])
    def test_what_was_missed_between_two_messages_is_not_scored(
        self, weights: WorkflowWeights, version: int, misses: int
    ) -> None:
        weights.apply(ServiceUpdate((update(W2, version=version, z=0),)))
        assert (weights.trust.hits, weights.trust.misses) == (0, misses)

    def test_scoring_goes_on_after_such_a_gap(self, weights: WorkflowWeights) -> None:
        weights.apply(ServiceUpdate((update(W1, version=9, a=1, b=0, c=1),)))
        weights.apply(ServiceUpdate((update(W1, version=10, a=0, b=1, c=1),)))
        assert (weights.trust.hits, weights.trust.misses) == (1, 0)

    def test_the_first_vector_after_a_lost_lease_is_not_scored(
        self, weights: WorkflowWeights
    ) -> None:
        weights.apply(LeaseLost())
        weights.apply(ServiceUpdate((update(W2, version=2, z=0),)))
        assert (weights.trust.hits, weights.trust.misses) == (0, 0)


class Namespace:
    """Equal by name, with a hash of its own in each rank, as strings have."""

    def __init__(self, name: int, salt: int) -> None:
        self.name = name
        self.salt = salt

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Namespace) and self.name == other.name

    def __hash__(self) -> int:
        return hash((self.name * self.salt, self.salt))


class Rank:
    """One scheduler process, with conversations and hashes of its own."""

    def __init__(self, salt: int) -> None:
        self.salt = salt
        self.changed: list[tuple[int, float]] = []
        self.dropped: list[int] = []
        self.weights = WorkflowWeights(
            lambda owner: self.changed.append((owner.number, owner.steps)),
            lambda owner: self.dropped.append(owner.number),
        )
        self.conversations = [conversation() for _ in range(4)]

    def play(self, operation: tuple[Any, ...]) -> object:
        weights = self.weights
        match operation:
            case ("called", key, agent):
                weights.called(key, agent)
            case ("prefetched", key, used):
                weights.prefetched(key, used=used)
            case ("prefix", agent, name):
                return weights.prefix_owner("c", agent, Namespace(name, self.salt)).number
            case ("history", key, agent, number):
                return weights.history_owner(key, agent, self.conversations[number]).number
            case ("drop", number):
                weights.drop_histories([self.conversations[number]])
            case ("in band", metadata):
                weights.apply_in_band(metadata)
            case (_, message):
                return weights.apply(message)
        return None

    def state(self) -> object:
        weights = self.weights
        owners = [weights.owner(number) for number in range(1, 80)]
        return (
            sorted(self.changed),
            sorted(self.dropped),
            [owner and (owner.kind, owner.steps) for owner in owners],
            {agent: dict(workflows) for agent, workflows in weights.near_agents.items()},
            list(weights.live()),
            (weights.live_workflows, weights.needs_ticks, weights.trust.hits, weights.trust.misses),
        )


agents = st.sampled_from("ab")
keys = st.sampled_from([W1, W2])
vectors = st.dictionaries(agents, st.sampled_from([0, 1, 2, 5, math.inf]), min_size=1)
updates = st.builds(WorkflowUpdate, keys, st.integers(1, 9), vectors, st.just({}))
metadata = st.builds(
    RequestMetadata,
    workflow_id=st.sampled_from(["w1", "w2"]),
    agent_id=st.just("a"),
    client_id=st.just("c"),
    ttl_s=st.just(2.0),
    version=st.none() | st.integers(1, 9),
    steps_to_execution=st.dictionaries(agents, st.none() | st.integers(0, 5), min_size=1),
)
operations = st.lists(
    st.one_of(
        st.tuples(
            st.just("message"),
            st.one_of(
                st.builds(
                    ServiceUpdate,
                    st.lists(updates, max_size=2).map(tuple),
                    st.lists(keys, max_size=1).map(tuple),
                    st.booleans(),
                    st.booleans(),
                ),
                st.builds(LeaseLost),
                st.builds(Tick, st.integers(0, 9).map(float)),
            ),
        ),
        st.tuples(st.just("in band"), metadata),
        st.tuples(st.just("called"), keys, st.sampled_from("abx")),
        st.tuples(st.just("prefetched"), keys, st.booleans()),
        st.tuples(st.just("prefix"), agents, st.integers(0, 2)),
        st.tuples(st.just("history"), keys, agents, st.integers(0, 3)),
        st.tuples(st.just("drop"), st.integers(0, 3)),
    ),
    max_size=40,
)


@given(operations)
@settings(max_examples=200)
def test_two_ranks_that_are_told_the_same_hold_the_same(played: list[tuple[Any, ...]]) -> None:
    first, second = Rank(salt=1), Rank(salt=-7)
    for operation in played:
        assert first.play(operation) == second.play(operation)
        assert first.state() == second.state()


@given(operations)
@settings(max_examples=200)
def test_steps_govern_exactly_what_they_are_trusted_to(played: list[tuple[Any, ...]]) -> None:
    rank = Rank(salt=1)
    weights = rank.weights
    told: dict[tuple[str, str], Mapping[str, float]] = {}

    class Observer:
        def steps_changed(self, key: tuple[str, str], steps: Mapping[str, float]) -> None:
            told[key] = steps

        def ended(self, key: tuple[str, str]) -> None:
            del told[key]

    weights.observer = Observer()
    for operation in played:
        rank.play(operation)
        near: dict[tuple[str, str], dict[tuple[str, str], float]] = {}
        minimum = dict.fromkeys("ab", math.inf)
        for key, steps in told.items():
            trust = weights.trust.trust(key)
            for agent, value in steps.items():
                if trust != "none":
                    minimum[agent] = min(minimum[agent], value)
                if trust == "full" and 1 <= value <= NEAR_STEPS:
                    near.setdefault(("c", agent), {})[key] = value
        assert weights.near_agents == near
        for agent in "ab":
            owners = weights.owners_of(("c", agent), W1)
            assert all(o.steps == minimum[agent] for o in owners if o.kind == "prefix")
