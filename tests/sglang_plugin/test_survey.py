"""Where agents' prefixes are, in SGLang's own tree."""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from typing import Any

import pytest

from kvflow.sglang_plugin.survey import Placement, PrefixSurvey, pool_use
from kvflow.sglang_plugin.transfers import TokenPath
from tests.sglang_plugin.caches import build_cache, evict, finished_request, insert
from tests.sglang_plugin.hicache import CLIENT, Engine, build_engine, patched_sglang


@pytest.fixture(scope="module", autouse=True)
def sglang() -> Iterator[None]:
    with patched_sglang():
        yield


@pytest.fixture
def engine() -> Iterator[Engine]:
    with build_engine(capacity_tokens=256, chunk_tokens=256) as engine:
        yield engine


def prompt(number: int, length: int = 40) -> list[int]:
    return [number * 1000 + i for i in range(length)]


def survey(cache: Any, **options: Any) -> dict[tuple[str, str], Placement]:
    looking = PrefixSurvey(cache, **options)
    while not looking.go_on():
        pass
    return looking.found


def call(cache: Any, agent: str, tokens: list[int], namespace: str | None = None) -> None:
    metadata = {"workflow_id": "w", "agent_id": agent, "client_id": CLIENT}
    request = finished_request(tokens, (), {**metadata, "fixed_prefix_tokens": len(tokens)})
    request.extra_key = namespace
    cache._learn(request)


def test_a_prefix_moves_from_device_to_host_and_is_gone_at_last(engine: Engine) -> None:
    key = (CLIENT, "a1")
    engine.steps(1, a1=3)
    engine.compute([*prompt(1), 9], "a1", fixed_prefix_tokens=40)
    assert survey(engine.cache) == {key: Placement(40, 40, 0, 0, 3)}
    engine.settle()
    engine.move_to_host()
    assert survey(engine.cache) == {key: Placement(40, 0, 40, 0, 3)}
    engine.flush()
    assert survey(engine.cache) == {key: Placement(40, 0, 0, 0, 3)}


def test_what_left_the_tree_may_be_in_the_storage_tier() -> None:
    cache = build_cache("kvflow", 100)
    insert(cache, prompt(1))
    call(cache, "a", prompt(1))
    owner = cache.kvflow_weights.prefix_owner(CLIENT, "a", (None, None))
    cache.kvflow_paths[owner.number] = TokenPath(array("q", prompt(1)), None, None)
    assert survey(cache)[CLIENT, "a"] == Placement(40, 40, 0, 0, None)
    evict(cache, 40)
    assert survey(cache)[CLIENT, "a"] == Placement(40, 0, 0, 40, None)


def test_namespaces_of_an_agent_are_added_up() -> None:
    cache = build_cache("kvflow", 100)
    insert(cache, prompt(1))
    call(cache, "a", prompt(1))
    call(cache, "a", prompt(2, 30), namespace="tenant")
    assert survey(cache) == {(CLIENT, "a"): Placement(70, 40, 0, 0, None)}


def test_the_agents_called_last_are_looked_at() -> None:
    cache = build_cache("kvflow", 100)
    for number in range(5):
        call(cache, f"a{number}", prompt(number))
    call(cache, "a0", prompt(0))
    assert {agent for _, agent in survey(cache, limit=2)} == {"a0", "a4"}


def test_one_step_does_a_bounded_part() -> None:
    cache = build_cache("kvflow", 1000)
    for number in range(10):
        insert(cache, prompt(number))
        call(cache, f"a{number}", prompt(number))
    looking = PrefixSurvey(cache)
    assert not looking.go_on(nodes=4)
    assert len(looking.found) == 2  # each costs one for itself and one for its node
    cache.kvflow_weights._prefix_owners.popitem(last=False)  # given up meanwhile
    assert looking.go_on(nodes=1000)
    assert len(looking.found) == 9


def test_pools() -> None:
    cache = build_cache("kvflow", 100)
    insert(cache, prompt(1))
    assert pool_use(cache.token_to_kv_pool_allocator) == (100, 40)
