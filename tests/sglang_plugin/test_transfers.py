"""Loads ahead of need, in SGLang's own cache with a host pool; random orders are elsewhere."""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from kvflow.sglang_plugin.schedule import StatusAwareScheduling
from kvflow.sglang_plugin.transfers import TokenPath
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


class TestWaitBeforeDecoding:
    @pytest.fixture
    def waits(self, engine: Engine, monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, Any]]:
        """``a1`` is being loaded, ``a2`` is there; which copies were waited for, and where."""
        engine.steps(1, a1=1)
        agent = know(engine, 1)
        engine.move_to_host()
        know(engine, 2)
        assert engine.cache.kvflow_transfers.load(agent, 40, CAUSE)
        waits: list[tuple[int, Any]] = []
        acks = [
            SimpleNamespace(
                finish_event=SimpleNamespace(
                    wait=lambda stream="the current one", n=n: waits.append((n, stream)),
                    synchronize=lambda n=n: waits.append((n, "the host")),
                )
            )
            for n in range(2)
        ]
        monkeypatch.setattr(engine.controller, "ack_load_queue", acks)
        return waits

    def wait(self, engine: Engine, number: int) -> None:
        nodes = engine.cache.chain(owner(engine, number))
        assert nodes
        engine.cache.kvflow_transfers.wait_before_decoding(nodes)

    def test_the_streams_that_may_compute_wait_for_all_copies(
        self, engine: Engine, waits: list[tuple[int, Any]]
    ) -> None:
        """With overlap scheduling that is the one SGLang names, without it the current one."""
        self.wait(engine, 1)
        streams = (engine.forwards, "the current one")
        assert waits == [(n, stream) for n in range(2) for stream in streams]

    def test_the_host_where_the_controller_names_no_stream(
        self, engine: Engine, waits: list[tuple[int, Any]], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.delattr(engine.controller, "load_fence_stream")
        monkeypatch.delattr(engine.controller, "kvflow_computing_stream")
        self.wait(engine, 1)
        assert waits == [(0, "the host"), (1, "the host")]

    def test_not_for_what_others_need(self, engine: Engine, waits: list[tuple[int, Any]]) -> None:
        self.wait(engine, 2)
        assert waits == []

    def test_not_for_what_has_arrived(self, engine: Engine, waits: list[tuple[int, Any]]) -> None:
        engine.cache.kvflow_transfers.loads.clear()
        self.wait(engine, 1)
        assert waits == []


class Seen:
    """An observer that remembers the fetches it was told of."""

    def __init__(self) -> None:
        self.fetches: list[tuple[int, int, int]] = []

    def loaded(self, tokens: int, seconds: float) -> None:
        """Of no interest here."""

    def fetched(self, owner: int, arrived_tokens: int, wanted_tokens: int) -> None:
        self.fetches.append((owner, arrived_tokens, wanted_tokens))


class TestFetches:
    """With a stand-in for SGLang's fetch from the storage tier."""

    @pytest.fixture
    def handles(self, engine: Engine, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
        """The path of ``a1`` has left the tree; what is fetched is noted."""
        cache = engine.cache
        engine.steps(1, a1=1)
        know(engine, 1)
        engine.evict(1000)
        cache.evict_host(1000)
        assert cache.chain(owner(engine, 1)) == []
        path = TokenPath(array("q", prompt(1)), None, None)
        cache.kvflow_paths[owner(engine, 1).number] = path
        cache.kvflow_transfers.observer = Seen()
        cache.prefetch_threshold = 1
        cache.enable_storage = True
        handles: list[Any] = []

        def fetch(handle: Any, anchor: int, path: TokenPath, start: int) -> None:
            handles.append((anchor, path.tokens.tolist(), start))
            cache.ongoing_prefetch[handle] = None

        monkeypatch.setattr(cache, "prefetch_own", fetch)
        return handles

    def test_is_under_way_until_it_has_landed(self, engine: Engine, handles: list[Any]) -> None:
        cache, transfers = engine.cache, engine.cache.kvflow_transfers
        agent = owner(engine, 1)
        assert transfers.fetch(agent, 32, CAUSE)
        assert handles == [(cache.tree_core.root_node.id, prompt(1)[:32], 0)]
        assert not transfers.fetch(agent, 32, CAUSE)
        assert (transfers.fetching_tokens, transfers.take_landed()) == (32, False)
        ((handle, _),) = cache.ongoing_prefetch.items()
        del cache.ongoing_prefetch[handle]
        cache.prefetch_loaded_tokens_by_reqid[handle] = 16
        assert transfers.take_landed()
        assert not transfers.busy
        assert transfers.observer.fetches == [(agent.number, 16, 32)]
        assert handle not in cache.prefetch_loaded_tokens_by_reqid

    def test_what_is_not_begun_has_brought_nothing(
        self, engine: Engine, handles: list[Any], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        transfers = engine.cache.kvflow_transfers
        monkeypatch.setattr(engine.cache, "prefetch_own", lambda *_: None)
        assert not transfers.fetch(owner(engine, 1), 32, CAUSE)
        assert not transfers.busy
        assert transfers.observer.fetches == [(owner(engine, 1).number, 0, 32)]

    def test_what_is_cancelled_has_not_ended(self, engine: Engine, handles: list[Any]) -> None:
        transfers = engine.cache.kvflow_transfers
        transfers.fetch(owner(engine, 1), 32, CAUSE)
        engine.cache.ongoing_prefetch.clear()
        transfers.cancel_fetch(owner(engine, 1).number)
        assert not transfers.take_landed()
        assert transfers.observer.fetches == []

    def test_a_request_for_the_same_does_not_fetch_it_again(
        self, engine: Engine, handles: list[Any]
    ) -> None:
        transfers = engine.cache.kvflow_transfers
        assert transfers.fetch(owner(engine, 1), 40, CAUSE)
        ((number, fetch),) = transfers.fetches.items()
        assert number == owner(engine, 1).number
        for tokens, extra_key, covered in (
            ([*prompt(1), 5], None, True),
            (prompt(1)[:8], None, True),
            ([*prompt(1)[:39], 5], None, False),
            ([*prompt(1), 5], "lora", False),
        ):
            path = TokenPath(array("q", tokens), extra_key, None)
            assert (transfers.fetch_covering(path) is fetch) is covered

    def test_not_without_a_storage_tier(self, engine: Engine, handles: list[Any]) -> None:
        engine.cache.enable_storage = False
        assert not engine.cache.kvflow_transfers.can_fetch
        assert not engine.cache.kvflow_transfers.fetch(owner(engine, 1), 32, CAUSE)
        assert handles == []
