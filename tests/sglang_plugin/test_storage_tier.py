"""The host pool where a storage tier is behind it, in SGLang's own cache; nothing is stored."""

from __future__ import annotations

import random
from array import array
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import pytest

from kvflow.sglang_plugin.transfers import TokenPath
from tests.sglang_plugin.caches import FULL, MIN_SPLIT_TOKENS, build_cache, insert, insert_host
from tests.sglang_plugin.hicache import CLIENT, Engine, build_engine, patched_sglang


@pytest.fixture(scope="module", autouse=True)
def sglang() -> Iterator[None]:
    with patched_sglang():
        yield


@pytest.fixture
def engine() -> Iterator[Engine]:
    with build_engine(capacity_tokens=256, chunk_tokens=256) as engine:
        yield engine
        engine.check()


def prompt(number: int, length: int = 40) -> list[int]:
    return [number * 1000 + i for i in range(length)]


def know(engine: Engine, number: int, length: int = 40) -> Any:
    """Agent ``a<number>`` was called with a question of one token; the node of its prefix."""
    engine.compute([*prompt(number, length), 9], f"a{number}", fixed_prefix_tokens=length)
    owner = engine.cache.kvflow_weights.prefix_owner(CLIENT, f"a{number}", (None, None))
    (node,) = engine.cache.chain(owner)
    return node


def question_of(node: Any) -> Any:
    (child,) = node.children.values()
    return child


def evict_host(engine: Engine, tokens: int, *, kept: Iterable[Any] = ()) -> int:
    """Make room in the host pool as with a storage tier behind it."""
    cache = engine.cache
    component = cache.components[FULL]
    component.kept_duplicates = frozenset(kept)
    cache.enable_storage = True
    try:
        return int(cache.evict_host(tokens))
    finally:
        cache.enable_storage = False
        component.kept_duplicates = frozenset()


def on_host(*nodes: Any) -> list[bool]:
    return [bool(node.backuped) for node in nodes]


class TestOrder:
    """``a1`` and its question are in the host pool alone, ``a2`` and its question in both."""

    @pytest.fixture
    def nodes(self, engine: Engine) -> Sequence[Any]:
        engine.steps(1, a1=1, a2=1)
        host_only = know(engine, 1)
        engine.move_to_host()
        both = know(engine, 2)
        assert host_only.evicted
        assert not both.evicted
        nodes = (question_of(host_only), question_of(both), both, host_only)
        assert on_host(*nodes) == [True] * 4
        return nodes

    @pytest.mark.parametrize(
        ("asked", "freed", "left"),
        [
            (1, 1, [False, True, True, True]),  # nobody will need it
            (2, 2, [False, False, True, True]),  # the device has it, and nothing hangs from it
            (3, 42, [False, False, False, True]),  # the device has it
            (43, 82, [False] * 4),
        ],
    )
    def test_duplicates_go_after_what_nobody_needs_and_before_what_somebody_does(
        self, engine: Engine, nodes: Sequence[Any], asked: int, freed: int, left: list[bool]
    ) -> None:
        assert evict_host(engine, asked) == freed
        assert on_host(*nodes) == left

    def test_not_where_there_is_no_storage_tier(self, engine: Engine, nodes: Sequence[Any]) -> None:
        assert engine.cache.evict_host(200) == 41
        assert on_host(*nodes) == [False, True, True, False]

    def test_duplicates_stay_on_the_device(self, engine: Engine, nodes: Sequence[Any]) -> None:
        evict_host(engine, 42)
        assert not any(node.evicted for node in nodes[1:3])
        engine.check_content()

    def test_they_are_counted(self, engine: Engine, nodes: Sequence[Any]) -> None:
        core = engine.cache.tree_core
        assert core.host_duplicate_tokens() == 41
        evict_host(engine, 2)
        assert core.host_duplicate_tokens() == 40
        evict_host(engine, 40)
        assert core.host_duplicate_tokens() == 0

    def test_what_is_worth_no_more_than_anything_there_gets_no_leaf_but_duplicates(
        self, engine: Engine, nodes: Sequence[Any]
    ) -> None:
        component = engine.cache.components[FULL]
        component.host_candidate_key = engine.cache.tree_core.rank(nodes[3])
        assert evict_host(engine, 200) == 42
        component.host_candidate_key = None
        assert on_host(*nodes) == [False, False, False, True]


class TestKept:
    @pytest.fixture
    def nodes(self, engine: Engine) -> tuple[Any, Any]:
        engine.steps(1, a1=1)
        parent = know(engine, 1)
        return parent, question_of(parent)

    def test_a_parent_is_kept_while_a_child_hangs_from_it(
        self, engine: Engine, nodes: tuple[Any, Any]
    ) -> None:
        assert evict_host(engine, 100, kept=[nodes[1]]) == 0
        assert on_host(*nodes) == [True, True]

    def test_the_rest_goes(self, engine: Engine, nodes: tuple[Any, Any]) -> None:
        assert evict_host(engine, 100, kept=[nodes[0]]) == 1
        assert on_host(*nodes) == [True, False]

    def test_what_a_copy_is_reading_is_kept_with_all_it_hangs_from(
        self, engine: Engine, nodes: tuple[Any, Any]
    ) -> None:
        params = engine.cache.inc_host_lock_ref(nodes[1].id).to_dec_params()
        assert evict_host(engine, 100) == 0
        engine.cache.dec_host_lock_ref(nodes[1].id, params)
        assert evict_host(engine, 100) == 41

    def test_what_a_backup_hangs_from_is_kept(
        self, engine: Engine, nodes: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        seen: list[frozenset[Any]] = []
        write = engine.controller.write

        def spy(*args: Any, **kwargs: Any) -> Any:
            seen.append(engine.cache.components[FULL].kept_duplicates)
            return write(*args, **kwargs)

        monkeypatch.setattr(engine.controller, "write", spy)
        monkeypatch.setattr(type(engine.cache), "write_backup_storage", lambda *_: None)
        engine.cache.enable_storage = True
        engine.submit([*prompt(1), 9, 8, 7])
        engine.form()
        engine.finish_launched()
        engine.cache.enable_storage = False
        assert any({*nodes} <= kept for kept in seen)
        assert engine.cache.components[FULL].kept_duplicates == frozenset()


@pytest.mark.parametrize("seed", range(20))
def test_what_is_left_in_the_host_pool_hangs_together(engine: Engine, seed: int) -> None:
    rng = random.Random(seed)
    engine.steps(1, **{f"a{n}": rng.choice((1, 2, float("inf"))) for n in range(4)})
    for turn in range(12):
        number = rng.randrange(4)
        shared = prompt(number // 2, rng.choice((8, 16)))
        path = [*shared, *prompt(10 + number, 12), turn, *prompt(20, rng.randrange(1, 9))]
        engine.compute(path, f"a{number}", fixed_prefix_tokens=len(shared) + 12)
        if rng.random() < 0.3:
            engine.evict(rng.randrange(1, 60))
        nodes = [node for node, _ in engine.nodes()]
        before = engine.controller.mem_pool_host.available_size()
        freed = evict_host(engine, rng.randrange(1, 40), kept=rng.sample(nodes, min(2, len(nodes))))
        assert engine.controller.mem_pool_host.available_size() == before + freed
        for node, _ in engine.nodes():
            parent = node.parent
            if node.backuped and parent is not engine.cache.tree_core.root_node:
                assert parent.backuped
        engine.check()
    engine.check_content()


@pytest.mark.parametrize("storage", [True, False])
def test_nodes_stay_in_one_piece_where_there_is_a_storage_tier(
    engine: Engine, storage: bool
) -> None:
    engine.steps(1, a1=1)
    node = know(engine, 1, 150)
    engine.evict(1)  # the question
    engine.cache.enable_storage = storage
    freed = engine.evict(10)
    engine.cache.enable_storage = False
    assert freed == (150 if storage else MIN_SPLIT_TOKENS)
    assert len(node.key) == freed
    engine.settle()
    assert (evict_host(engine, 10) if storage else engine.cache.evict_host(10)) >= 10


class TestShortfall:
    """Nodes of 10 tokens that nobody needs are in the host pool."""

    @pytest.fixture
    def engine(self) -> Iterator[Engine]:
        with build_engine(capacity_tokens=256) as engine:
            for number in range(6):
                engine.compute(prompt(number, 10))
            engine.move_to_host()
            yield engine

    def leave_free(self, engine: Engine, tokens: int) -> None:
        pool = engine.controller.mem_pool_host
        assert pool.alloc(pool.available_size() - tokens) is not None

    @pytest.mark.parametrize(
        ("free", "asked", "freed"), [(0, 25, 30), (5, 25, 20), (24, 25, 10), (25, 25, 30)]
    )
    def test_no_more_is_evicted_than_is_missing(
        self, engine: Engine, free: int, asked: int, freed: int
    ) -> None:
        self.leave_free(engine, free)
        assert engine.cache.evict_host(asked) == freed

    def test_another_component_is_asked_for_all(self, engine: Engine) -> None:
        self.leave_free(engine, 5)
        assert engine.cache.evict_host(25, FULL) == 30

    @pytest.mark.parametrize("free", [5, 14])
    def test_a_backup_gets_its_room_with_a_little_free(self, engine: Engine, free: int) -> None:
        self.leave_free(engine, free)
        engine.compute(prompt(9, 30))
        node = engine.cache.peek(prompt(9, 30), None, None)[-1][0]
        assert node.backuped

    @pytest.mark.parametrize("free", [0, 1, 15, 29, 30])
    def test_a_backup_gets_its_room(self, engine: Engine, free: int) -> None:
        self.leave_free(engine, free)
        engine.compute(prompt(9, 30))
        node = engine.cache.peek(prompt(9, 30), None, None)[-1][0]
        assert node.backuped


class TestFetchAnchor:
    """A path of 300 tokens; of it 60 and 40 more are in the host pool."""

    @pytest.fixture
    def cache(self) -> Any:
        cache = build_cache("kvflow", 1000)
        cache.tree_core.set_hicache_enabled()
        cache.prefetch_threshold = 10
        return cache

    def anchor(self, cache: Any, length: int = 300) -> tuple[Any, int]:
        path = TokenPath(array("q", prompt(1, length)), None, None)
        node, start = cache.fetch_anchor(path)
        return cache.tree_core.node_by_id(node), start

    def nodes(self, cache: Any) -> tuple[Any, Any]:
        insert_host(cache, prompt(1, 60))
        insert_host(cache, prompt(1, 100))
        (upper, _), (lower, _) = cache.peek(prompt(1, 100), None, None)
        return upper, lower

    def test_begins_at_the_root_where_nothing_is_there(self, cache: Any) -> None:
        assert self.anchor(cache) == (cache.tree_core.root_node, 0)

    @pytest.mark.parametrize(
        ("threshold", "index", "start"),
        [(10, 1, 100), (200, 1, 100), (201, 0, 60), (240, 0, 60), (241, None, 0), (301, None, 0)],
    )
    def test_below_the_last_in_host_memory_that_leaves_enough(
        self, cache: Any, threshold: int, index: int | None, start: int
    ) -> None:
        nodes = self.nodes(cache)
        cache.prefetch_threshold = threshold
        wanted = cache.tree_core.root_node if index is None else nodes[index]
        assert self.anchor(cache) == (wanted, start)

    def test_not_within_a_node(self, cache: Any) -> None:
        upper, _ = self.nodes(cache)
        assert self.anchor(cache, 90) == (upper, 60)

    def test_not_below_what_is_on_the_device_alone(self, cache: Any) -> None:
        insert(cache, prompt(1, 60))
        insert(cache, prompt(1, 100))
        assert self.anchor(cache) == (cache.tree_core.root_node, 0)


class Watcher:
    """Remembers of which nodes it was told that they left."""

    def __init__(self) -> None:
        self.left: list[Any] = []

    def split(self, upper: Any, lower: Any) -> None:
        """Of no interest here."""

    def evicted(self, node: Any) -> None:
        self.left.append(node)


class TestWatcher:
    @pytest.fixture
    def engine(self) -> Iterator[Engine]:
        with build_engine(policy="write_back", capacity_tokens=256) as engine:
            engine.cache.tree_core.watcher = Watcher()
            yield engine
            engine.check()

    def test_is_told_of_what_goes_to_the_host_pool(self, engine: Engine) -> None:
        engine.steps(1, a1=1)
        node = know(engine, 1)
        question = question_of(node)
        engine.evict(41)
        assert engine.cache.tree_core.watcher.left == [question, node]
        assert on_host(question, node) == [True, True]

    def test_is_told_of_what_is_thrown_away(self, engine: Engine) -> None:
        engine.compute(prompt(1))
        ((node, _),) = engine.nodes()
        pool = engine.controller.mem_pool_host
        held = pool.alloc(pool.available_size())
        engine.evict(40)
        assert engine.cache.tree_core.watcher.left == [node]
        assert list(engine.nodes()) == []
        pool.free(held)

    def test_is_not_told_of_what_stays_as_it_cannot_be_written(
        self, engine: Engine, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        engine.compute(prompt(1))
        ((node, _),) = engine.nodes()
        pool = engine.controller.mem_pool_host
        held = pool.alloc(pool.available_size())
        monkeypatch.setattr(engine.cache, "_drop_subtree_no_host", lambda *_: False)
        assert engine.evict(40) == 0
        assert engine.cache.tree_core.watcher.left == []
        assert not node.evicted
        pool.free(held)
