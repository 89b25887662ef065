"""The eviction order in SGLang's own tree. What needs a model is in test_engine*.py."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import pytest

from kvflow.graph import INFINITE_STEPS
from kvflow.sglang_plugin.control import LeaseLost, ServiceUpdate, WorkflowUpdate
from kvflow.sglang_plugin.transfers import needed_sooner
from tests.sglang_plugin.caches import (
    EOS,
    FULL,
    MIN_SPLIT_TOKENS,
    build_cache,
    cached_tokens,
    evict,
    evict_host,
    finished_request,
    insert,
    insert_host,
)

CLIENT = "c"
WORKFLOW = "w"


def steps(cache: Any, version: int = 1, workflow: str = WORKFLOW, **values: float) -> None:
    cache.apply_control(
        ServiceUpdate(workflows=(WorkflowUpdate((CLIENT, workflow), version, values, {}),))
    )


def call(
    cache: Any,
    agent: str,
    prompt: Sequence[int],
    answer: Sequence[int] = (),
    workflow: str = WORKFLOW,
    **fields: Any,
) -> None:
    """A call of an agent ran and finished: its KV is in the tree, the plugin has seen it."""
    insert(cache, [*prompt, *answer])
    metadata = {"workflow_id": workflow, "agent_id": agent, "client_id": CLIENT, **fields}
    cache._learn(finished_request(prompt, answer, metadata))


def prompt(agent: int, length: int = 100) -> list[int]:
    return [agent * 10_000 + i for i in range(length)]


@pytest.fixture
def cache() -> Any:
    return build_cache("kvflow", 4000)


class TestOrder:
    def test_larger_steps_go_first_whatever_their_recency(self, cache: Any) -> None:
        steps(cache, a=3, b=1, c=2)
        for number, agent in enumerate("abc"):
            call(cache, agent, prompt(number))
        evict(cache, 100)
        assert [cached_tokens(cache, prompt(n)) for n in range(3)] == [0, 100, 100]
        evict(cache, 100)
        assert [cached_tokens(cache, prompt(n)) for n in range(3)] == [0, 100, 0]

    def test_new_steps_reorder_what_is_cached(self, cache: Any) -> None:
        steps(cache, a=3, b=1)
        call(cache, "a", prompt(0))
        call(cache, "b", prompt(1))
        steps(cache, version=2, a=1, b=3)
        evict(cache, 100)
        assert [cached_tokens(cache, prompt(n)) for n in range(2)] == [100, 0]

    def test_suffixes_go_before_prefixes_and_among_them_the_oldest(self, cache: Any) -> None:
        steps(cache, a=9, b=9)
        for question in range(3):
            call(cache, "a", [*prompt(0), *prompt(50 + question, 20)])
        insert(cache, prompt(80, 20))  # a request that says nothing about itself
        evict(cache, 20)
        assert cached_tokens(cache, [*prompt(0), *prompt(50, 20)]) == 100
        evict(cache, 60)
        assert cached_tokens(cache, prompt(80, 20)) == 0
        assert cached_tokens(cache, prompt(0)) == 100

    def test_after_one_call_the_first_message_is_held_to_be_fixed(self, cache: Any) -> None:
        steps(cache, a=1)
        first_message = [*prompt(0, 99), EOS]
        call(cache, "a", [*first_message, *prompt(50, 40), EOS, *prompt(51, 5)])
        evict(cache, 1)
        assert cached_tokens(cache, [*first_message, *prompt(50, 40)]) == 100

    def test_shared_prefix_has_the_minimum_of_its_agents(self, cache: Any) -> None:
        shared = prompt(7, 60)
        steps(cache, a=1, b=8, c=4)
        call(cache, "a", [*shared, *prompt(1, 40)])
        call(cache, "b", [*shared, *prompt(2, 40)])
        call(cache, "c", prompt(3, 100))
        evict(cache, 40)  # b's own part
        evict(cache, 100)  # c
        assert cached_tokens(cache, [*shared, *prompt(1, 40)]) == 100
        evict(cache, 40)  # a's own part is deeper than what it shares
        assert cached_tokens(cache, shared) == 60

    def test_minimum_over_workflows_counts(self, cache: Any) -> None:
        steps(cache, workflow="w1", a=9, b=5)
        steps(cache, workflow="w2", a=1)
        call(cache, "a", prompt(0), workflow="w1")
        call(cache, "b", prompt(1), workflow="w1")
        evict(cache, 100)
        assert [cached_tokens(cache, prompt(n)) for n in range(2)] == [100, 0]

    def test_closed_workflow_loses_its_weight_at_once(self, cache: Any) -> None:
        steps(cache, a=1)
        call(cache, "a", prompt(0))
        insert(cache, prompt(5))
        cache.apply_control(ServiceUpdate(closed=((CLIENT, WORKFLOW),)))
        evict(cache, 100)
        assert cached_tokens(cache, prompt(0)) == 0
        assert cached_tokens(cache, prompt(5)) == 100

    def test_other_clients_agents_of_the_same_name_weigh_nothing_here(self, cache: Any) -> None:
        steps(cache, a=1)
        insert(cache, prompt(0))
        cache._learn(
            finished_request(
                prompt(0), (), {"workflow_id": WORKFLOW, "agent_id": "a", "client_id": "other"}
            )
        )
        insert(cache, prompt(1))
        evict(cache, 100)
        assert cached_tokens(cache, prompt(0)) == 0


class TestPartialEviction:
    def test_weighted_victim_gives_up_what_is_needed_and_no_more(self, cache: Any) -> None:
        steps(cache, a=1)
        call(cache, "a", prompt(0, 1000))
        assert evict(cache, 200) == 200
        assert cached_tokens(cache, prompt(0, 1000)) == 800

    def test_pieces_have_a_least_size(self, cache: Any) -> None:
        steps(cache, a=1)
        call(cache, "a", prompt(0, 1000))
        assert evict(cache, 1) == MIN_SPLIT_TOKENS

    def test_weight_survives_splits(self, cache: Any) -> None:
        steps(cache, a=1, b=2)
        call(cache, "a", prompt(0, 1000))
        call(cache, "b", prompt(1, 1000))
        insert(cache, [*prompt(0, 500), *prompt(9, 10)])  # splits a's node
        evict(cache, 10)
        evict(cache, 1000)
        assert [cached_tokens(cache, prompt(n, 1000)) for n in range(2)] == [1000, 0]


class TestEvictingBelow:
    """Eviction that makes room for something brought ahead of need."""

    def test_takes_what_ranks_below_and_stops_there(self, cache: Any) -> None:
        steps(cache, a=1, b=2, c=3, d=4)
        for number, agent in enumerate("abcd"):
            call(cache, agent, prompt(number))
        insert(cache, prompt(9, 30))
        key = cache.tree_core.rank(node_of(cache, "b"))
        assert cache.tree_core.reclaimable_tokens(key, 10_000) == 230
        with cache.evicting_below(key):
            assert evict(cache, 1000) == 230
        assert [cached_tokens(cache, prompt(n)) for n in range(4)] == [100, 100, 0, 0]

    def test_of_two_alike_the_one_read_longer_ago(self, cache: Any) -> None:
        steps(cache, a=2, b=2)
        call(cache, "a", prompt(0))
        call(cache, "b", prompt(1))
        newer, older = (cache.tree_core.rank(node_of(cache, agent)) for agent in "ba")
        assert cache.tree_core.reclaimable_tokens(older, 1) == 0
        with cache.evicting_below(older):
            assert evict(cache, 100) == 0
        with cache.evicting_below(newer):
            assert evict(cache, 100) == 100
        assert cached_tokens(cache, prompt(1)) == 100

    @pytest.mark.parametrize("length", [50, 100, 150])
    def test_what_is_needed_as_soon_is_not_displaced_whatever_its_depth_and_age(
        self, cache: Any, length: int
    ) -> None:
        steps(cache, a=2, b=2, c=3)
        call(cache, "b", prompt(1, length))
        call(cache, "a", prompt(0))
        key = needed_sooner(prefix_owner(cache, "a"))
        assert cache.tree_core.reclaimable_tokens(key, 1000) == 0
        with cache.evicting_below(key):
            assert evict(cache, 1000) == 0
        call(cache, "c", prompt(2))
        assert cache.tree_core.reclaimable_tokens(key, 1000) == 100
        with cache.evicting_below(key):
            assert evict(cache, 1000) == 100
        assert cached_tokens(cache, prompt(2)) == 0

    def test_for_what_nobody_needs_only_suffixes_older_than_time_go(self, cache: Any) -> None:
        steps(cache, a=INFINITE_STEPS, b=1)
        call(cache, "a", prompt(0))
        insert(cache, prompt(9))
        with cache.evicting_below(needed_sooner(prefix_owner(cache, "a"))):
            assert evict(cache, 1000) == 0

    def test_a_victim_gives_up_its_tail_only(self, cache: Any) -> None:
        steps(cache, a=1, b=2)
        call(cache, "a", prompt(0))
        call(cache, "b", prompt(1, 1000))
        key = cache.tree_core.rank(node_of(cache, "a"))
        assert cache.tree_core.reclaimable_tokens(key, 200) == 200
        with cache.evicting_below(key):
            assert evict(cache, 200) == 200
        assert cached_tokens(cache, prompt(1, 1000)) == 800
        assert cached_tokens(cache, prompt(0)) == 100

    def test_a_path_is_reclaimed_up_to_the_part_that_is_wanted_sooner(self, cache: Any) -> None:
        shared = prompt(7, 60)
        steps(cache, a=1, b=2, c=5)
        call(cache, "a", prompt(1, 100))
        call(cache, "b", [*shared, *prompt(2, 40)])
        call(cache, "c", [*shared, *prompt(3, 40), *prompt(4, 30)])
        call(cache, "c", [*shared, *prompt(3, 40), *prompt(5, 20)])
        key = cache.tree_core.rank(node_of(cache, "b"))
        # Two suffixes; c's own part under them counts for neither, as it has two children.
        assert cache.tree_core.reclaimable_tokens(key, 10_000) == 50
        with cache.evicting_below(key):
            assert evict(cache, 1000) == 90
        assert cached_tokens(cache, [*shared, *prompt(2, 40)]) == 100
        assert cached_tokens(cache, prompt(1, 100)) == 100

    def test_what_a_running_request_reads_is_not_counted(self, cache: Any) -> None:
        steps(cache, a=1, b=9)
        call(cache, "a", prompt(0))
        call(cache, "b", [*prompt(1), *prompt(60, 20)])
        call(cache, "b", prompt(1))
        cache.inc_lock_ref(node_of(cache, "b").id)
        key = cache.tree_core.rank(node_of(cache, "a"))
        assert cache.tree_core.reclaimable_tokens(key, 10_000) == 20
        with cache.evicting_below(key):
            assert evict(cache, 1000) == 20

    def test_what_was_read_meanwhile_is_not_counted(self, cache: Any) -> None:
        steps(cache, a=2, b=2)
        call(cache, "b", prompt(1))
        call(cache, "a", prompt(0))
        cache.tree_core._touch_node(node_of(cache, "b"))
        key = cache.tree_core.rank(node_of(cache, "a"))
        assert cache.tree_core.reclaimable_tokens(key, 100) == 0

    def test_limits_nothing_afterwards(self, cache: Any) -> None:
        steps(cache, a=1)
        call(cache, "a", prompt(0))
        key = cache.tree_core.rank(node_of(cache, "a"))
        with pytest.raises(RuntimeError), cache.evicting_below(key):
            raise RuntimeError
        assert evict(cache, 100) == 100

    @pytest.mark.parametrize("seed", range(12))
    def test_whatever_the_tree_reclaimable_is_freed_and_nothing_above_is(self, seed: int) -> None:
        rng = random.Random(seed)
        cache = build_cache("kvflow", 4000)
        core = cache.tree_core
        agents = "abcdef"
        steps(cache, 1, WORKFLOW, **{agent: rng.randrange(1, 5) for agent in agents})
        for round_number in range(60):
            number = rng.randrange(6)
            own = prompt(number // 2, rng.choice((50, 100)))
            suffix = prompt(60 + rng.randrange(9), rng.choice((5, 30)))
            call(cache, agents[number], [*own, *prompt(10 + number, 40), *suffix])
            if rng.random() < 0.2:
                insert(cache, [*own, *suffix])
            if rng.random() < 0.3:
                values = {agent: rng.choice((1, 2, 3, 4, float("inf"))) for agent in agents}
                steps(cache, round_number + 2, WORKFLOW, **values)
            nodes = [node for node in core._collect_all_nodes() if node is not core.root_node]
            in_use = rng.choice(nodes).id
            lock = cache.inc_lock_ref(in_use)
            key, wanted = core.rank(rng.choice(nodes)), rng.randrange(1, 400)
            above = {node: len(node.key) for node in nodes if not core.rank(node) < key}
            reclaimable = core.reclaimable_tokens(key, wanted)
            assert reclaimable <= wanted
            with cache.evicting_below(key):
                freed = evict(cache, wanted)
            assert freed >= reclaimable
            left = {node: len(node.key) for node in core._collect_all_nodes()}
            assert above.items() <= left.items()
            cache.dec_lock_ref(in_use, lock.to_dec_params())
            check(cache)


class TestHistory:
    def test_chat_agents_context_outlives_suffixes(self, cache: Any) -> None:
        steps(cache, chat=1, other=1)
        context: list[int] = prompt(1)
        for turn in range(3):
            answer = prompt(20 + turn, 10)
            call(cache, "chat", context, answer)
            context = [*context, *answer, *prompt(30 + turn, 10)]
            call(cache, "other", [*prompt(2), *prompt(40 + turn, 20)])
        history = context[:-10]
        evict(cache, 60)  # the other agent's three questions
        assert cached_tokens(cache, [*prompt(2), *prompt(42, 20)]) == 100
        assert cached_tokens(cache, history) == len(history)

    def test_history_has_the_steps_of_its_own_workflow(self, cache: Any) -> None:
        for workflow in ("w1", "w2"):
            steps(cache, workflow=workflow, chat=2)
        histories = {}
        for number, workflow in enumerate(("w1", "w2")):
            context = [*prompt(1), *prompt(10 + number, 30)]
            for turn in range(2):
                answer = prompt(20 + 5 * number + turn, 40)
                call(cache, "chat", context, answer, workflow=workflow)
                histories[workflow] = [*context, *answer]
                context = [*context, *answer, *prompt(60 + 5 * number + turn, 10)]
        steps(cache, version=2, workflow="w1", chat=7)
        evict(cache, 64)
        assert cached_tokens(cache, histories["w1"]) < len(histories["w1"])
        assert cached_tokens(cache, histories["w2"]) == len(histories["w2"])

    def test_stated_fixed_length_is_taken(self, cache: Any) -> None:
        steps(cache, a=1)
        call(cache, "a", prompt(0, 200), fixed_prefix_tokens=150)
        evict(cache, 50)
        assert cached_tokens(cache, prompt(0, 200)) == 150
        insert(cache, prompt(5, 10))
        evict(cache, 10)
        assert cached_tokens(cache, prompt(0, 200)) == 150


class TestWithoutService:
    def test_lost_lease_is_plain_lru(self, cache: Any) -> None:
        stock = build_cache("python", 4000)
        steps(cache, a=1, b=2, c=3, d=4)
        rng = random.Random(7)
        for _ in range(40):
            number = rng.randrange(4)
            path = [*prompt(number, 300), *prompt(50 + rng.randrange(9), 30)]
            insert(stock, path)
            call(cache, "abcd"[number], path)
        cache.apply_control(LeaseLost())
        for number in rng.sample(range(4), 4):
            for tree in (stock, cache):
                insert(tree, prompt(number, 300))
        sizes = []
        for _ in range(30):
            evict(stock, 25)
            evict(cache, 25)
            sizes.append(
                [cached_tokens(t, prompt(n, 300)) for t in (stock, cache) for n in range(4)]
            )
        assert [row[:4] for row in sizes] == [row[4:] for row in sizes]
        assert sizes[-1] != [300] * 8

    def test_snapshot_restores_and_drops_what_it_does_not_name(self, cache: Any) -> None:
        steps(cache, workflow="w1", a=1)
        steps(cache, workflow="w2", b=1)
        call(cache, "a", prompt(0), workflow="w1")
        call(cache, "b", prompt(1), workflow="w2")
        cache.apply_control(LeaseLost())
        assert cache.kvflow_weights.live_workflows == 0
        update = WorkflowUpdate((CLIENT, "w1"), 4, {"a": 1}, {})
        cache.apply_control(ServiceUpdate((update,), snapshot_begins=True, snapshot_ends=True))
        evict(cache, 100)
        assert [cached_tokens(cache, prompt(n)) for n in range(2)] == [100, 0]


class TestHostTier:
    def test_same_order_as_on_the_device(self, cache: Any) -> None:
        cache.tree_core.set_hicache_enabled()
        steps(cache, a=3, b=1, c=2)
        for number, agent in enumerate("abc"):
            insert_host(cache, prompt(number))
            cache._learn(
                finished_request(
                    prompt(number),
                    (),
                    {"workflow_id": WORKFLOW, "agent_id": agent, "client_id": CLIENT},
                )
            )
        insert_host(cache, prompt(9))
        gone = []
        for _ in range(4):
            before = _host_paths(cache)
            assert evict_host(cache, 100) == 100
            gone.append((before - _host_paths(cache)).pop())
        assert gone == [prompt(n)[0] for n in (9, 0, 2, 1)]

    def test_worth_less_than_all_it_could_displace_is_not_written(self, cache: Any) -> None:
        cache.tree_core.set_hicache_enabled()
        steps(cache, a=1)
        insert_host(cache, prompt(0))
        cache._learn(
            finished_request(
                prompt(0), (), {"workflow_id": WORKFLOW, "agent_id": "a", "client_id": CLIENT}
            )
        )
        insert(cache, prompt(5))
        (newcomer,) = cache.tree_core.evictable_device_leaves
        component = cache.components[FULL]
        component.host_candidate_key = cache.tree_core.rank(newcomer)
        assert evict_host(cache, 50) == 0
        component.host_candidate_key = None
        assert evict_host(cache, 50) == 64


def node_of(cache: Any, agent: str) -> Any:
    """The last node of an agent's fixed prefix."""
    return cache.chain(prefix_owner(cache, agent))[-1]


def prefix_owner(cache: Any, agent: str) -> Any:
    return cache.kvflow_weights.prefix_owner(CLIENT, agent, (None, None))


def _host_paths(cache: Any) -> set[int]:
    return {node.key.token_ids[0] for node in cache.tree_core.evictable_host_leaves}


def test_learning_error_never_reaches_the_request(
    cache: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*args: object) -> None:
        raise RuntimeError("boom")

    monkeypatch.setattr(cache.kvflow_learner, "observe", broken)
    metadata = {"workflow_id": WORKFLOW, "agent_id": "a", "client_id": CLIENT}
    cache._learn_guarded(finished_request(prompt(0), (), metadata))
    assert "taught nothing" in caplog.text


def test_random_use_keeps_the_tree_sound() -> None:
    """Insert, learn, evict, re-weigh and reset at random; the tree's invariants hold throughout."""
    rng = random.Random(3)
    cache = build_cache("kvflow", 2000)
    agents = "abcdef"
    for round_number in range(400):
        number = rng.randrange(6)
        path = [*prompt(number, rng.choice((50, 100, 150))), *prompt(60 + rng.randrange(20), 15)]
        action = rng.random()
        if action < 0.5:
            call(cache, agents[number], path, prompt(90, 5), workflow=f"w{rng.randrange(3)}")
        elif action < 0.7:
            evict(cache, rng.randrange(1, 300))
        elif action < 0.9:
            values = {a: rng.choice((0, 1, 2, 5, float("inf"))) for a in agents}
            steps(cache, version=round_number, workflow=f"w{rng.randrange(3)}", **values)
        elif action < 0.97:
            cache.apply_control(ServiceUpdate(closed=((CLIENT, f"w{rng.randrange(3)}"),)))
        elif action < 0.99:
            cache.apply_control(LeaseLost())
        else:
            cache.reset()
            cache.token_to_kv_pool_allocator.clear()
        check(cache)


def check(cache: Any) -> None:
    core = cache.tree_core
    cache.sanity_check()
    nodes = set(core._collect_all_nodes())
    for leaves in (core.evictable_device_leaves, core.evictable_host_leaves):
        assert len(leaves.index) == len(leaves)
        assert all(leaf in leaves.index for leaf in leaves)
    assert set(core.ownership._owners) <= nodes
    for node, owners in core.ownership._owners.items():
        assert all(node in owner.nodes for owner in owners)
    assert core.component_evictable_size_[FULL] == sum(
        len(n.key) for n in nodes if n is not core.root_node
    )
