"""Random orders of everything that happens in a scheduler with copies under way.

After each step SGLang's own check and the books of both pools must hold, and whatever a batch reads
must be the KV of its tokens: as good as computed anew.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from typing import Any

import pytest

from kvflow.sglang_plugin.control import LeaseLost, LoadAhead, ServiceUpdate
from kvflow.sglang_plugin.schedule import StatusAwareScheduling
from kvflow.sglang_plugin.transfers import TransfersAhead
from tests.sglang_plugin.hicache import (
    CLIENT,
    Engine,
    WritePolicy,
    build_engine,
    mha,
    patched_sglang,
)

AGENTS = "abcd"
WORKFLOWS = ("v", "w")
STEPS_PER_RUN = 50
CHUNKS = 10
RUNS_PER_CHUNK = 25
SEEDS_THAT_TAKE_OVER = (63, 209, 244)
"""In these a running request takes over rows that a load is on its way to, and then decodes."""

Setting = tuple[WritePolicy, int]
SETTINGS: tuple[Setting, ...] = (
    ("write_through", 1),
    ("write_back", 1),
    ("write_through", 4),
    ("write_back", 4),
)


@pytest.fixture(scope="module", autouse=True)
def sglang() -> Iterator[None]:
    with patched_sglang():
        yield


class Run:
    """One random order of steps; the same for the same seed."""

    def __init__(self, engine: Engine, seed: int) -> None:
        self.engine = engine
        self.rng = random.Random(seed)
        self.version = 0
        self.fixed = {agent: self.prompt_of(n) for n, agent in enumerate(AGENTS)}
        self.histories: dict[str, list[int]] = {}
        self.log: list[str] = []

    def prompt_of(self, number: int) -> list[int]:
        shared = [7] * self.rng.choice((8, 13, 16))
        return [*shared, number % 2, *([number + 1] * self.rng.randrange(12, 40))]

    def steps(self) -> dict[Any, float]:
        return {
            self.submit: 6,
            self.form: 6,
            self.finish_oldest: 4,
            self.decode: 5,
            self.finish: 3,
            self.abort: 1,
            self.evict_device: 3,
            self.evict_host: 1,
            self.weigh: 3,
            self.load_ahead: 8,
            self.advance_copies: 3,
            self.advance_forwards: 2,
            self.events: 5,
            self.settle: 0.5,
            self.flush: 0.3,
        }

    def run(self, steps: int) -> None:
        self.begin()
        table = self.steps()
        for step in self.rng.choices(list(table), list(table.values()), k=steps):
            self.log.append(step.__name__)
            step()
            self.engine.check()
        self.log.append("end")
        self.engine.end_all()
        self.engine.settle()
        self.engine.check()
        self.engine.check_content()
        self.engine.check_locks_are_gone()
        assert not self.engine.cache.kvflow_transfers.loads

    def begin(self) -> None:
        """All agents have been called once; then their KV went to host memory."""
        self.weigh()
        for agent in AGENTS:
            fixed = self.fixed[agent]
            workflow = self.rng.choice(WORKFLOWS)
            self.engine.compute([*fixed, 0, 0], agent, workflow, fixed_prefix_tokens=len(fixed))
        self.engine.move_to_host()

    def submit(self) -> None:
        if len(self.engine.waiting) + len(self.engine.running) > 5:
            return
        agent = self.rng.choice(AGENTS)
        head = self.fixed[agent]
        if agent == "d" and self.rng.random() < 0.7:
            head = self.histories.get(agent, head)[:140]
        if self.rng.random() < 0.2:
            head = head[: self.rng.randrange(4, len(head))]
        question = self.rng.choices(range(3), k=self.rng.randrange(1, 10))
        answer = self.rng.choices(range(3), k=self.rng.randrange(1, 6))
        self.histories[agent] = [*head, *question, *answer]
        known = self.rng.random() < 0.85
        self.engine.submit(
            [*head, *question], answer, agent if known else None, self.rng.choice(WORKFLOWS)
        )

    def form(self) -> None:
        self.engine.cache.kvflow_load = self.rng.choice(("load", "recompute"))
        self.engine.form()

    def finish_oldest(self) -> None:
        if self.engine.launched:
            self.engine.finish_oldest()

    def decode(self) -> None:
        self.engine.decode()

    def finish(self) -> None:
        if self.engine.releasable:
            self.engine.finish(self.rng.choice(self.engine.releasable))

    def abort(self) -> None:
        candidates = [*self.engine.releasable, *self.engine.waiting]
        if candidates:
            self.engine.abort(self.rng.choice(candidates))

    def evict_device(self) -> None:
        self.engine.evict(self.rng.choice((8, 32, 80, 400)))

    def evict_host(self) -> None:
        self.engine.cache.evict_host(self.rng.choice((8, 32, 80)))

    def weigh(self) -> None:
        self.version += 1
        kind = self.rng.random()
        if kind < 0.9:
            values = {a: self.rng.choice((0, 1, 1, 2, 3, float("inf"))) for a in AGENTS}
            self.engine.steps(self.version, self.rng.choice(WORKFLOWS), **values)
        elif kind < 0.95:
            closed = ((CLIENT, self.rng.choice(WORKFLOWS)),)
            self.engine.cache.apply_control(ServiceUpdate(closed=closed))
        else:
            self.engine.cache.apply_control(LeaseLost())

    def load_ahead(self) -> None:
        owners = sorted(self.engine.cache.kvflow_weights._owners)
        self.engine.events()
        for number in self.rng.sample(owners, min(2, len(owners))):
            end_tokens = self.rng.choice((self.rng.randrange(1, 70), 10_000))
            cause = (CLIENT, self.rng.choice(WORKFLOWS))
            self.engine.cache.apply_control(LoadAhead(number, end_tokens, cause))

    def advance_copies(self) -> None:
        self.engine.copies.advance(self.rng.randrange(1, 9))

    def advance_forwards(self) -> None:
        self.engine.forwards.advance(self.rng.randrange(1, 9))

    def events(self) -> None:
        self.engine.events()
        cache = self.engine.cache
        for load in cache.kvflow_transfers.loads:
            assert load.anchor in cache.ongoing_load_back

    def settle(self) -> None:
        self.engine.settle()
        self.engine.check_content()

    def flush(self) -> None:
        self.engine.flush()
        assert not self.engine.cache.kvflow_transfers.busy


def run(setting: Setting, seed: int) -> Run:
    policy, page_size = setting
    with build_engine(
        policy=policy, page_size=page_size, capacity_tokens=256, host_ratio=1.5, chunk_tokens=48
    ) as engine:
        order = Run(engine, seed)
        try:
            order.run(STEPS_PER_RUN)
        except Exception as error:
            error.add_note(f"seed {seed}, {setting}, after {len(order.log)}: {order.log[-12:]}")
            raise
        return order


def run_all(setting: Setting, seeds: Iterable[int]) -> list[Run]:
    return [run(setting, seed) for seed in seeds]


@pytest.mark.parametrize("chunk", range(CHUNKS))
@pytest.mark.parametrize("setting", SETTINGS, ids=lambda s: f"{s[0]}-{s[1]}")
def test_any_order_leaves_all_in_order(setting: Setting, chunk: int) -> None:
    orders = run_all(setting, range(chunk * RUNS_PER_CHUNK, (chunk + 1) * RUNS_PER_CHUNK))
    used = [order.engine.cache.kvflow_transfers.usage.used_tokens for order in orders]
    assert sum(used) > 0  # else nothing was tried


def test_without_waiting_what_has_not_arrived_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(StatusAwareScheduling, "_make_wait_guarded", lambda *_: None)
    with pytest.raises(AssertionError, match="prefill of r"):
        run_all(SETTINGS[0], range(2 * RUNS_PER_CHUNK))


def test_without_waiting_before_decoding_what_has_not_arrived_is_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(TransfersAhead, "wait_before_decoding", lambda *_: None)
    with pytest.raises(AssertionError, match="decode of r"):
        run_all(SETTINGS[0], SEEDS_THAT_TAKE_OVER)


def test_without_copies_the_content_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mha, "transfer_kv_direct", lambda **_: None)
    with pytest.raises(AssertionError, match=r"prefill of r|node"):
        run(SETTINGS[0], 0)
