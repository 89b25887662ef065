"""Loads ahead of need, in SGLang's own cache with a host pool; random orders are elsewhere."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from kvflow.sglang_plugin.schedule import StatusAwareScheduling
from tests.sglang_plugin.hicache import (
    CLIENT,
    WORKFLOW,
    Engine,
    WritePolicy,
    build_engine,
    patched_sglang,
)

CAUSE = (CLIENT, WORKFLOW)
INFINITE = float("inf")


@pytest.fixture(scope="module", autouse=True)
def sglang() -> Iterator[None]:
    with patched_sglang():
        yield


@pytest.fixture(params=["write_through", "write_back"])
def engine(request: pytest.FixtureRequest) -> Iterator[Engine]:
    policy: WritePolicy = request.param
    with build_engine(policy=policy, capacity_tokens=256) as engine:
        yield engine


def prompt(number: int, length: int = 40) -> list[int]:
    return [number * 100 + i for i in range(length)]


def know(engine: Engine, number: int, length: int = 40) -> Any:
    """Agent ``a<number>`` was called twice, so that its prefix is known; all is on the device."""
    for question in (1, 2):
        engine.compute([*prompt(number, length), question], f"a{number}")
    return owner(engine, number)


def owner(engine: Engine, number: int) -> Any:
    return engine.cache.kvflow_weights.prefix_owner(CLIENT, f"a{number}", (None, None))


def on_device(engine: Engine, number: int) -> int:
    """Tokens of the agent's prefix that the tree says are on the device."""
    return sum(len(n.key) for n in engine.cache.chain(owner(engine, number)) if not n.evicted)


def land(engine: Engine) -> None:
    engine.forwards.close()
    engine.copies.close()
    engine.events()


def test_a_prefix_is_loaded_and_is_what_was_computed(engine: Engine) -> None:
    engine.steps(1, a1=1)
    agent = know(engine, 1)
    engine.move_to_host()
    assert on_device(engine, 1) == 0
    transfers = engine.cache.kvflow_transfers
    assert transfers.load(agent, 40, CAUSE)
    assert transfers.loading_tokens == 40
    assert all(transfers.is_loading(node) for node in engine.cache.chain(agent))
    engine.check()
    land(engine)
    assert not transfers.loads
    assert on_device(engine, 1) == 40
    engine.check()
    engine.check_content()
    engine.check_locks_are_gone()


@pytest.mark.parametrize(
    ("page_size", "end_tokens", "loaded"), [(1, 15, 15), (4, 16, 16), (4, 15, 12)]
)
def test_a_load_ends_where_it_is_told(page_size: int, end_tokens: int, loaded: int) -> None:
    with build_engine(page_size=page_size) as engine:
        engine.steps(1, a1=1)
        agent = know(engine, 1)
        engine.move_to_host()
        transfers = engine.cache.kvflow_transfers
        assert transfers.load(agent, end_tokens, CAUSE)
        assert (transfers.loading_tokens, on_device(engine, 1)) == (loaded, loaded)
        land(engine)
        engine.check()
        engine.check_content()


def test_less_than_a_page_does_not_load_more_than_asked_for() -> None:
    with build_engine(page_size=4) as engine:
        engine.steps(1, a1=1)
        agent = know(engine, 1)
        engine.move_to_host()
        engine.cache.kvflow_transfers.load(agent, 2, CAUSE)
        assert on_device(engine, 1) <= 4


def test_chunks_complete_a_prefix_and_load_nothing_twice(engine: Engine) -> None:
    engine.steps(1, a1=1)
    agent = know(engine, 1)
    engine.move_to_host()
    transfers = engine.cache.kvflow_transfers
    for end_tokens, loading in ((16, 16), (30, 14), (100, 10)):
        assert transfers.load(agent, end_tokens, CAUSE)
        assert transfers.loading_tokens == loading
        land(engine)
    assert not transfers.load(agent, 100, CAUSE)
    assert transfers.usage.prefetched_tokens == 40
    assert on_device(engine, 1) == 40
    engine.check()
    engine.check_content()


def test_what_is_there_or_on_its_way_is_not_loaded(engine: Engine) -> None:
    engine.steps(1, a1=1)
    agent = know(engine, 1)
    transfers = engine.cache.kvflow_transfers
    assert not transfers.load(agent, 40, CAUSE)
    engine.move_to_host()
    assert transfers.load(agent, 40, CAUSE)
    assert not transfers.load(agent, 40, CAUSE)
    assert transfers.usage.prefetched_tokens == 40


def test_one_load_at_a_time_leaves_requests_their_slots(engine: Engine) -> None:
    engine.steps(1, a1=1, a2=1)
    agents = [know(engine, 1), know(engine, 2)]
    engine.move_to_host()
    transfers = engine.cache.kvflow_transfers
    assert transfers.load(agents[0], 40, CAUSE)
    assert not transfers.load(agents[1], 40, CAUSE)
    engine.copies.close()
    assert not transfers.load(agents[1], 40, CAUSE)  # it has arrived, and no rank has noted it
    engine.events()
    assert transfers.load(agents[1], 40, CAUSE)


@pytest.mark.parametrize(
    ("mine", "others", "loads"),
    [(1, 2, True), (1, INFINITE, True), (2, 1, False), (3, 0, False)],
)
def test_nothing_needed_sooner_makes_room(
    engine: Engine, mine: float, others: float, loads: bool
) -> None:
    engine.steps(1, a1=mine, a2=others)
    agent = know(engine, 1, 80)
    engine.move_to_host()
    know(engine, 2, 200)
    engine.evict(4)  # the questions
    assert engine.allocator.available_size() < 80
    before = on_device(engine, 2)
    assert engine.cache.kvflow_transfers.load(agent, 80, CAUSE) is loads
    assert (on_device(engine, 2) < before) is loads
    land(engine)
    engine.check()
    engine.check_content()


def test_what_requests_hold_is_never_displaced(engine: Engine) -> None:
    engine.steps(1, a1=0)
    agent = know(engine, 1, 80)
    engine.move_to_host()
    engine.submit(prompt(5, 200), (1, 2, 3))
    while engine.waiting or engine.chunked is not None:
        engine.form()
    assert not engine.cache.kvflow_transfers.load(agent, 80, CAUSE)
    engine.finish_launched()
    engine.decode()
    engine.finish_launched()
    engine.check()


def test_evicted_unread_is_wasted(engine: Engine) -> None:
    engine.steps(1, a1=1)
    agent = know(engine, 1)
    engine.move_to_host()
    usage = engine.cache.kvflow_transfers.usage
    engine.cache.kvflow_transfers.load(agent, 40, CAUSE)
    land(engine)
    engine.move_to_host()
    assert (usage.used_tokens, usage.wasted_tokens, usage.unused_tokens) == (0, 40, 0)
    engine.check()


def test_read_by_a_request_is_used_once(engine: Engine) -> None:
    engine.steps(1, a1=1)
    agent = know(engine, 1)
    engine.move_to_host()
    usage = engine.cache.kvflow_transfers.usage
    engine.cache.kvflow_transfers.load(agent, 40, CAUSE)
    land(engine)
    for question in (3, 4):
        engine.compute([*prompt(1), question], "a1")
        assert (usage.used_tokens, usage.wasted_tokens, usage.unused_tokens) == (40, 0, 0)
    engine.move_to_host()
    assert (usage.used_tokens, usage.wasted_tokens) == (40, 0)


def test_a_split_keeps_both_halves_loading(engine: Engine) -> None:
    engine.steps(1, a1=1)
    agent = know(engine, 1)
    engine.move_to_host()
    transfers = engine.cache.kvflow_transfers
    transfers.load(agent, 40, CAUSE)
    (node,) = engine.cache.chain(agent)
    req = engine.submit([*prompt(1, 15), 9, 9])
    batch = engine.form()
    upper, lower = engine.cache.chain(agent)
    assert lower is node
    assert (len(upper.key), len(lower.key)) == (15, 25)
    assert transfers.is_loading(upper)
    assert transfers.is_loading(lower)
    assert batch is not None
    assert batch.hicache_consumer_index == transfers.loads[0].producer
    usage = transfers.usage
    assert (usage.used_tokens, usage.unused_tokens) == (15, 25)
    engine.finish_launched()
    engine.finish(req)
    engine.settle()
    engine.check()
    engine.check_content()


def test_a_batch_waits_for_the_layers_it_reads(engine: Engine) -> None:
    engine.steps(1, a1=1)
    agent = know(engine, 1)
    engine.move_to_host()
    engine.cache.kvflow_transfers.load(agent, 40, CAUSE)
    req = engine.submit([*prompt(1), 9])
    assert engine.form() is not None
    assert req.prefix_len == 40
    engine.finish_launched()
    engine.check()


def test_without_the_wait_it_reads_what_is_not_there(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(StatusAwareScheduling, "_make_wait_guarded", lambda *_: None)
    engine.steps(1, a1=1)
    agent = know(engine, 1)
    engine.move_to_host()
    engine.cache.kvflow_transfers.load(agent, 40, CAUSE)
    engine.submit([*prompt(1), 9])
    engine.form()
    engine.finish_launched()
    assert "K of 40/40 tokens" in engine.wrong[0]


def test_decoding_waits_for_rows_that_were_taken_over(engine: Engine) -> None:
    engine.steps(1, a1=1)
    agent = know(engine, 1)
    engine.move_to_host()
    engine.cache.kvflow_load = "recompute"
    engine.submit([*prompt(1), 9], (1, 2, 3), "a1")
    engine.form()
    assert engine.cache.kvflow_transfers.load(agent, 40, CAUSE)
    engine.finish_launched()
    engine.decode()
    engine.finish_launched()
    engine.check()


def test_a_later_chunk_waits_for_rows_that_were_taken_over() -> None:
    with build_engine(chunk_tokens=24) as engine:
        engine.steps(1, a1=1)
        agent = know(engine, 1)
        engine.move_to_host()
        engine.cache.kvflow_load = "recompute"
        engine.submit([*prompt(1), 9], (1, 2, 3), "a1")
        engine.form()
        assert engine.cache.kvflow_transfers.load(agent, 40, CAUSE)
        batch = engine.form()
        assert batch is not None
        assert batch.hicache_consumer_index == engine.cache.kvflow_transfers.loads[0].producer
        engine.finish_launched()
        engine.check()


def test_a_flush_waits_for_what_is_under_way(engine: Engine) -> None:
    engine.steps(1, a1=1)
    agent = know(engine, 1)
    engine.move_to_host()
    transfers = engine.cache.kvflow_transfers
    transfers.load(agent, 40, CAUSE)
    engine.flush()
    assert not transfers.busy
    assert engine.copies.idle
    assert not engine.cache.ongoing_load_back
    assert engine.allocator.available_size() == engine.capacity_tokens
    assert not agent.nodes
    engine.check()
    know(engine, 1)
    engine.move_to_host()
    assert transfers.load(agent, 40, CAUSE)
    land(engine)
    engine.check_content()


def test_a_request_s_own_load_comes_after_and_covers_the_prefetch(engine: Engine) -> None:
    engine.steps(1, a1=1)
    agent = know(engine, 1)
    engine.compute([*prompt(1), *prompt(7, 20)])
    engine.move_to_host()
    transfers = engine.cache.kvflow_transfers
    assert transfers.load(agent, 40, CAUSE)
    req = engine.submit([*prompt(1), *prompt(7, 20), 9])
    batch = engine.form()
    assert batch is not None
    assert (req.prefix_len, req.host_loaded_length) == (60, 20)
    slots = engine.controller.layer_done_counter.num_counters
    assert batch.hicache_consumer_index == (transfers.loads[0].producer + 1) % slots
    engine.finish_launched()
    engine.check()
    engine.settle()
    engine.check_content()


def test_slots_go_round_with_prefetches_and_requests_mixed(engine: Engine) -> None:
    engine.steps(1, a1=1, a2=1)
    agents = [know(engine, 1), know(engine, 2)]
    for turn in range(20):
        engine.move_to_host()
        assert engine.cache.kvflow_transfers.load(agents[turn % 2], 40, CAUSE)
        for number in (1, 2):
            engine.submit([*prompt(number), 50 + turn])
            assert engine.form() is not None
        engine.finish_launched()
        for req in list(engine.running):
            engine.finish(req)
        engine.check()


def test_computing_instead_of_loading_leaves_the_tree_sound(engine: Engine) -> None:
    engine.steps(1, a1=1)
    know(engine, 1)
    engine.move_to_host()
    engine.cache.kvflow_load = "recompute"
    req = engine.submit([*prompt(1), 9], (1, 2), "a1")
    batch = engine.form()
    assert batch is not None
    assert (req.host_hit_length, req.prefix_len, batch.hicache_consumer_index) == (40, 0, -1)
    engine.finish_launched()
    engine.check()
    engine.decode()
    engine.finish_launched()
    engine.finish(req)
    engine.settle()
    assert on_device(engine, 1) == 40
    engine.check()
    engine.check_content()
    engine.check_locks_are_gone()


def test_too_short_to_load_is_refused_without_harm() -> None:
    with build_engine(load_back_threshold=10) as engine:
        engine.steps(1, a1=1)
        agent = know(engine, 1)
        engine.move_to_host()
        assert not engine.cache.kvflow_transfers.load(agent, 9, CAUSE)
        assert not engine.cache.kvflow_transfers.busy
        engine.check()
        engine.check_locks_are_gone()
        assert engine.cache.kvflow_transfers.load(agent, 10, CAUSE)


def test_a_gap_in_the_path_is_not_loaded_over(engine: Engine) -> None:
    engine.steps(1, a1=1)
    agent = know(engine, 1)
    engine.move_to_host()
    engine.cache.evict_host(1000)
    assert not engine.cache.kvflow_transfers.load(agent, 40, CAUSE)
    engine.check()
