"""Which waiting requests a batch passes over, with the real cache and a stand-in scheduler."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from kvflow.prefetch import Link
from kvflow.prefetch.holding import GRACE_S
from kvflow.sglang_plugin import schedule as schedule_module
from kvflow.sglang_plugin.control import Rates, ServiceUpdate, Tick, WorkflowUpdate
from kvflow.sglang_plugin.metrics import NoMetrics
from kvflow.sglang_plugin.runtime import PluginRuntime
from kvflow.sglang_plugin.schedule import NAP_S, StatusAwareScheduling
from kvflow.sglang_plugin.settings import PluginSettings
from kvflow.sglang_plugin.transfers import FetchUnderWay, LoadUnderWay, TokenPath
from tests.sglang_plugin.caches import build_cache, finished_request, insert

CAPACITY = 1000
W1 = ("c", "w1")
W2 = ("c", "w2")


class Clock:
    """In place of the module ``time``."""

    def __init__(self) -> None:
        self.now_s = 1000.0
        self.slept: list[float] = []

    def monotonic(self) -> float:
        return self.now_s

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)


class SeenMetrics(NoMetrics):
    """Metrics that remember what this module reports."""

    def __init__(self) -> None:
        self.stalls: list[tuple[str, float]] = []
        self.outcomes: list[tuple[str, int]] = []

    def stalled(self, cause: Any, seconds: float) -> None:
        self.stalls.append((cause, seconds))

    def prefetch_outcome(self, outcome: Any, tokens: int) -> None:
        self.outcomes.append((outcome, tokens))


class Running:
    """The running batch."""

    def __init__(self, reqs: Sequence[Any] = ()) -> None:
        self.reqs = list(reqs)

    def is_empty(self) -> bool:
        return not self.reqs


class FakeScheduler:
    """Takes requests from the head of its queue; remembers which it was shown."""

    def __init__(self, *queue: Any, takes: int = 0, running: Sequence[Any] = ()) -> None:
        self.waiting_queue = list(queue)
        self.running_batch = Running(running)
        self.takes = takes
        self.consumer_index = -1
        self.shown: list[str] = []

    def form(self, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        self.shown = [req.rid for req in self.waiting_queue]
        taken = self.waiting_queue[: self.takes]
        self.waiting_queue = self.waiting_queue[self.takes :]
        if not taken:
            return None, self.running_batch
        batch = SimpleNamespace(reqs=taken, hicache_consumer_index=self.consumer_index)
        return batch, self.running_batch

    @property
    def queue(self) -> list[str]:
        return [req.rid for req in self.waiting_queue]


def prompt(number: int, length: int = 100) -> list[int]:
    return [number * 10_000 + i for i in range(length)]


def request(cache: Any, rid: str, tokens: Sequence[int], workflow: str | None = None) -> Any:
    """A waiting request; the last node it matches is set as SGLang does on admission."""
    metadata = None
    if workflow is not None:
        metadata = {"workflow_id": workflow, "agent_id": "a", "client_id": "c"}
    req = finished_request(tokens, (), metadata)
    req.rid = rid
    found = cache.peek(tokens, None, None)
    req.last_node = found[-1][0].id if found else cache.tree_core.root_node.id
    return req


def loading(cache: Any, tokens: Sequence[int], producer: int = 1) -> LoadUnderWay:
    """As after a load ahead was submitted: the nodes look resident and are not there yet."""
    insert(cache, tokens)
    node = cache.peek(tokens, None, None)[-1][0]
    load = LoadUnderWay(
        anchor=node.id,
        producer=producer,
        tokens=len(node.key),
        nodes={node},
        cause=(W1, 1),
        start_s=0.0,
    )
    cache.kvflow_transfers.loads.append(load)
    cache.kvflow_transfers.usage.loaded(node, len(node.key), (W1, 1))
    return load


def fetching(cache: Any, tokens: Sequence[int], number: int = 1) -> None:
    """As after a fetch ahead was started."""
    path = TokenPath(finished_request(tokens, (), None).origin_input_ids, None, None)
    cache.kvflow_transfers.fetches[number] = FetchUnderWay(
        handle=object(), path=path, start=0, cause=(W1, number), start_s=0.0
    )


def tick(cache: Any, now_s: float, **links: Link) -> None:
    cache.apply_control(Tick(now_s, Rates(**links)))


def no_tick(cache: Any) -> None:
    """As at a step that brings no clock."""
    runtime = PluginRuntime(PluginSettings())
    runtime._cache = cache
    runtime.take_messages(lambda *_: None, None, [])


@pytest.fixture
def cache() -> Any:
    return build_cache("kvflow", CAPACITY)


@pytest.fixture
def metrics(cache: Any) -> SeenMetrics:
    seen = SeenMetrics()
    cache.report_to(seen)
    return seen


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    fake = Clock()
    monkeypatch.setattr(schedule_module, "time", fake)
    return fake


def form(
    scheduling: StatusAwareScheduling, scheduler: FakeScheduler, original: Any = FakeScheduler.form
) -> Any:
    return scheduling.form_batch(original, scheduler, None, scheduler.running_batch)[0]


class TestQueue:
    def test_is_left_alone_where_nothing_is_under_way(self, cache: Any) -> None:
        scheduler = FakeScheduler(*(request(cache, rid, prompt(0)) for rid in "ab"), takes=1)
        queue = scheduler.waiting_queue
        seen = []

        def original(itself: FakeScheduler, *args: Any, **kwargs: Any) -> Any:
            seen.append((itself.waiting_queue is queue, args, kwargs))
            return itself.form()

        result = StatusAwareScheduling(cache, None).form_batch(original, scheduler, 1, key=2)
        assert seen == [(True, (1,), {"key": 2})]
        assert [req.rid for req in result[0].reqs] == ["a"]
        assert scheduler.queue == ["b"]

    def test_a_request_whose_prefix_is_on_its_way_is_passed_over(self, cache: Any) -> None:
        loading(cache, prompt(0))
        scheduler = FakeScheduler(
            request(cache, "coming", [*prompt(0), 5]), request(cache, "ready", prompt(1)), takes=1
        )
        batch = form(StatusAwareScheduling(cache, None), scheduler)
        assert scheduler.shown == ["ready"]
        assert [req.rid for req in batch.reqs] == ["ready"]
        assert scheduler.queue == ["coming"]

    @pytest.mark.parametrize("takes", [0, 1, 2, 3])
    def test_keeps_its_order(self, cache: Any, takes: int) -> None:
        loading(cache, prompt(0))
        coming = {"a", "c", "e"}
        scheduler = FakeScheduler(
            *(request(cache, rid, prompt(0 if rid in coming else 1)) for rid in "abcdef"),
            takes=takes,
        )
        form(StatusAwareScheduling(cache, None), scheduler)
        assert scheduler.shown == ["b", "d", "f"]
        taken = {"b", "d", "f"} if takes == 3 else set("bdf"[:takes])
        assert scheduler.queue == [rid for rid in "abcdef" if rid not in taken]

    def test_what_is_added_meanwhile_comes_last(self, cache: Any) -> None:
        loading(cache, prompt(0))
        scheduler = FakeScheduler(
            request(cache, "coming", prompt(0)), request(cache, "ready", prompt(1))
        )

        def original(itself: FakeScheduler, *args: Any) -> Any:
            itself.waiting_queue.insert(0, request(cache, "new", prompt(2)))
            return None, itself.running_batch

        form(StatusAwareScheduling(cache, None), scheduler, original)
        assert scheduler.queue == ["coming", "ready", "new"]

    def test_held_requests_come_back_where_forming_the_batch_fails(self, cache: Any) -> None:
        loading(cache, prompt(0))
        scheduler = FakeScheduler(
            request(cache, "coming", prompt(0)), request(cache, "ready", prompt(1))
        )

        def original(itself: FakeScheduler, *args: Any) -> Any:
            raise RuntimeError("out of memory")

        with pytest.raises(RuntimeError, match="out of memory"):
            form(StatusAwareScheduling(cache, None), scheduler, original)
        assert scheduler.queue == ["coming", "ready"]

    def test_nobody_is_passed_over_once_the_load_has_landed(self, cache: Any) -> None:
        loading(cache, prompt(0))
        scheduling = StatusAwareScheduling(cache, None)
        scheduler = FakeScheduler(
            request(cache, "coming", prompt(0)), request(cache, "ready", prompt(1))
        )
        form(scheduling, scheduler)
        cache.kvflow_transfers.loads.clear()
        form(scheduling, scheduler)
        assert scheduler.shown == ["coming", "ready"]

    def test_a_load_is_waited_for_as_long_as_it_should_take(self, cache: Any) -> None:
        loading(cache, prompt(0))
        scheduling = StatusAwareScheduling(cache, None)
        queue = [request(cache, "coming", prompt(0)), request(cache, "ready", prompt(1))]
        link = Link(tokens_per_s=100.0)
        for now_s, held in ((50.0, True), (51.0 + GRACE_S / 2, True), (51.1, False)):
            tick(cache, now_s, load=link)
            scheduler = FakeScheduler(*queue)
            form(scheduling, scheduler)
            assert scheduler.shown == (["ready"] if held else ["coming", "ready"])

    @pytest.mark.parametrize(
        ("link", "seconds"), [(None, 1.0), (Link(tokens_per_s=50.0, latency_s=0.5), 2.5)]
    )
    def test_what_comes_from_storage_is_waited_for_alone_too(
        self, cache: Any, link: Link | None, seconds: float
    ) -> None:
        fetching(cache, prompt(0))
        scheduling = StatusAwareScheduling(cache, None)
        coming = request(cache, "coming", [*prompt(0), 5])
        for now_s, held in ((50.0, True), (50.0 + seconds, True), (50.1 + seconds, False)):
            tick(cache, now_s, **({} if link is None else {"fetch": link}))
            scheduler = FakeScheduler(coming)
            form(scheduling, scheduler)
            assert scheduler.shown == ([] if held else ["coming"])
            assert scheduler.queue == ["coming"]

    def test_another_namespace_is_another_prefix(self, cache: Any) -> None:
        fetching(cache, prompt(0))
        loading(cache, prompt(1))
        queue = [request(cache, "a", prompt(0)), request(cache, "b", prompt(1))]
        for req in queue:
            req.extra_key = "lora"
        scheduler = FakeScheduler(*queue)
        form(StatusAwareScheduling(cache, None), scheduler)
        assert scheduler.shown == ["a", "b"]


class TestBatch:
    def test_waits_for_the_load_it_reads(self, cache: Any, metrics: SeenMetrics) -> None:
        loading(cache, prompt(0), producer=2)
        scheduler = FakeScheduler(request(cache, "a", [*prompt(0), 5]), takes=1)
        batch = form(StatusAwareScheduling(cache, None), scheduler)
        assert batch.hicache_consumer_index == 2
        assert metrics.outcomes == [("late", 100), ("used", 100)]

    def test_waits_for_nothing_it_does_not_read(self, cache: Any, metrics: SeenMetrics) -> None:
        loading(cache, prompt(0))
        insert(cache, prompt(1))
        scheduler = FakeScheduler(request(cache, "a", prompt(1)), takes=1)
        batch = form(StatusAwareScheduling(cache, None), scheduler)
        assert batch.hicache_consumer_index == -1
        assert metrics.outcomes == []

    def test_waits_no_more_once_the_load_has_landed(self, cache: Any, metrics: SeenMetrics) -> None:
        loading(cache, prompt(0))
        cache.kvflow_transfers.loads.clear()
        scheduling = StatusAwareScheduling(cache, None)
        for rid in "ab":
            batch = form(scheduling, FakeScheduler(request(cache, rid, prompt(0)), takes=1))
            assert batch.hicache_consumer_index == -1
        assert metrics.outcomes == [("used", 100)]

    def test_its_own_load_covers_those_before(self, cache: Any) -> None:
        loading(cache, prompt(0), producer=1)
        scheduler = FakeScheduler(request(cache, "a", prompt(0)), takes=1)
        scheduler.consumer_index = 0
        batch = form(StatusAwareScheduling(cache, None), scheduler)
        assert batch.hicache_consumer_index == 0

    def test_waits_for_the_last_of_several_loads(self, cache: Any) -> None:
        loading(cache, prompt(0), producer=2)
        loading(cache, prompt(1), producer=0)
        loading(cache, prompt(2), producer=1)
        queue = [request(cache, "b", prompt(1)), request(cache, "a", prompt(0))]
        batch = form(StatusAwareScheduling(cache, None), FakeScheduler(*queue, takes=2))
        assert batch.hicache_consumer_index == 0

    def test_waits_for_a_prefix_further_up_its_path(self, cache: Any) -> None:
        loading(cache, prompt(0), producer=2)
        insert(cache, [*prompt(0), *prompt(1)])
        scheduler = FakeScheduler(request(cache, "a", [*prompt(0), *prompt(1)]), takes=1)
        batch = form(StatusAwareScheduling(cache, None), scheduler)
        assert batch.hicache_consumer_index == 2

    def test_waits_for_the_upper_part_of_a_node_that_was_split(self, cache: Any) -> None:
        loading(cache, prompt(0), producer=2)
        insert(cache, [*prompt(0, 40), *prompt(1)])
        scheduler = FakeScheduler(request(cache, "a", [*prompt(0, 40), *prompt(1)]), takes=1)
        batch = form(StatusAwareScheduling(cache, None), scheduler)
        assert batch.hicache_consumer_index == 2

    def test_of_use_to_the_workflows_trust(self, cache: Any) -> None:
        cache.apply_control(ServiceUpdate((WorkflowUpdate(W1, 1, {"a": 0, "b": 1}, {}),)))
        weights = cache.kvflow_weights
        for _ in range(9):
            weights.prefetched(W1, used=False)
        assert weights.near_agents == {}
        for number in range(9):
            loading(cache, prompt(number, 10))
            scheduler = FakeScheduler(request(cache, "a", prompt(number, 10)), takes=1)
            form(StatusAwareScheduling(cache, None), scheduler)
        assert weights.near_agents == {("c", "b"): {W1: 1}}


class TestErrors:
    def test_an_error_in_the_decision_leaves_sglangs(
        self, cache: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        loading(cache, prompt(0))
        monkeypatch.setattr(cache, "peek_request", broken)
        scheduler = FakeScheduler(
            request(cache, "coming", prompt(0)), request(cache, "ready", prompt(1)), takes=1
        )
        batch = form(StatusAwareScheduling(cache, None), scheduler)
        assert scheduler.shown == ["coming", "ready"]
        assert batch.hicache_consumer_index == 1
        assert scheduler.queue == ["ready"]
        assert "no request is passed over" in caplog.text

    def test_where_the_wait_cannot_be_told_all_copies_are_waited_for(
        self, cache: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        loading(cache, prompt(0))
        waited: list[int] = []
        acks = [
            SimpleNamespace(finish_event=SimpleNamespace(synchronize=lambda n=n: waited.append(n)))
            for n in range(2)
        ]
        monkeypatch.setattr(cache, "cache_controller", SimpleNamespace(ack_load_queue=acks))
        monkeypatch.setattr(cache, "path_to", broken)
        batch = form(
            StatusAwareScheduling(cache, None),
            FakeScheduler(request(cache, "a", prompt(0)), takes=1),
        )
        assert [req.rid for req in batch.reqs] == ["a"]
        assert waited == [0, 1]
        assert "to be safe" in caplog.text


def broken(*args: object) -> None:
    raise RuntimeError("boom")


class TestNap:
    @pytest.mark.parametrize(
        ("takes", "copy", "running", "naps"),
        [
            (0, fetching, False, 1),
            (0, fetching, True, 0),
            (0, loading, False, 0),
            (1, loading, False, 0),
            (0, None, False, 0),
        ],
    )
    def test_only_where_nothing_runs_but_copies_are_waited_for(
        self,
        cache: Any,
        clock: Clock,
        takes: int,
        copy: Callable[..., Any] | None,
        running: bool,
        naps: int,
    ) -> None:
        if copy is not None:
            copy(cache, prompt(0))
        req = request(cache, "a", prompt(0))
        scheduler = FakeScheduler(
            req, takes=takes, running=[request(cache, "r", [])] if running else []
        )
        form(StatusAwareScheduling(cache, None), scheduler)
        assert clock.slept == [NAP_S] * naps

    def test_not_where_another_request_enters_a_batch(self, cache: Any, clock: Clock) -> None:
        fetching(cache, prompt(0))
        queue = [request(cache, "coming", prompt(0)), request(cache, "ready", prompt(1))]
        assert form(StatusAwareScheduling(cache, None), FakeScheduler(*queue, takes=1)) is not None
        assert clock.slept == []


class TestClock:
    def test_is_needed_while_somebody_is_held_and_no_longer(self, cache: Any) -> None:
        scheduling = StatusAwareScheduling(cache, None)
        scheduler = FakeScheduler(request(cache, "a", prompt(0)))
        form(scheduling, scheduler)
        assert not scheduling.needs_clock
        fetching(cache, prompt(0))
        form(scheduling, scheduler)
        assert scheduling.needs_clock  # though there is no clock yet
        tick(cache, 50.0)
        form(scheduling, scheduler)
        assert scheduling.needs_clock
        fetching(cache, prompt(1), number=2)
        del cache.kvflow_transfers.fetches[1]
        form(scheduling, scheduler)
        assert not scheduling.needs_clock

    @pytest.mark.parametrize("empty", [True, False])
    def test_is_not_needed_once_no_copy_is_under_way(self, cache: Any, empty: bool) -> None:
        scheduling = StatusAwareScheduling(cache, None)
        fetching(cache, prompt(0))
        tick(cache, 50.0)
        req = request(cache, "a", prompt(0))
        form(scheduling, FakeScheduler(req))
        cache.kvflow_transfers.fetches.clear()
        form(scheduling, FakeScheduler(*([] if empty else [req])))
        assert not scheduling.needs_clock

    def test_a_clock_that_stood_still_makes_nobody_overdue(self, cache: Any) -> None:
        scheduling = StatusAwareScheduling(cache, None)
        tick(cache, 50.0)
        no_tick(cache)
        fetching(cache, prompt(0))
        scheduler = FakeScheduler(request(cache, "a", prompt(0)))
        form(scheduling, scheduler)
        assert scheduling.needs_clock
        tick(cache, 5000.0)  # the first in an hour; the request came a moment ago
        form(scheduling, scheduler)
        assert scheduler.shown == []

    def test_waits_are_reported_when_they_end(
        self, cache: Any, clock: Clock, metrics: SeenMetrics
    ) -> None:
        scheduling = StatusAwareScheduling(cache, None)
        fetching(cache, prompt(0))
        scheduler = FakeScheduler(request(cache, "a", prompt(0)))
        form(scheduling, scheduler)
        clock.now_s += 0.25
        form(scheduling, scheduler)
        assert metrics.stalls == []
        clock.now_s += 0.5
        cache.kvflow_transfers.fetches.clear()
        form(scheduling, scheduler)
        form(scheduling, scheduler)
        assert metrics.stalls == [("wait", 0.75)]


class TestAdmission:
    """Two workflows whose contexts do not fit together, as the pool holds ``CAPACITY`` tokens."""

    @pytest.fixture(autouse=True)
    def workflows(self, cache: Any) -> None:
        cache.apply_control(
            ServiceUpdate(tuple(WorkflowUpdate(key, 1, {"a": 0, "b": 1}, {}) for key in (W1, W2)))
        )
        tick(cache, 50.0)

    def test_the_one_that_waits_longest_goes_first(self, cache: Any) -> None:
        scheduling = StatusAwareScheduling(cache, 1.0)
        first = request(cache, "first", prompt(1, 700), workflow="w2")
        form(scheduling, FakeScheduler(first))
        tick(cache, 51.0)
        later = request(cache, "later", prompt(2, 700), workflow="w1")
        stranger = request(cache, "stranger", prompt(3, 700))
        scheduler = FakeScheduler(later, stranger, first)
        form(scheduling, scheduler)
        assert scheduler.shown == ["stranger", "first"]
        assert scheduler.queue == ["later", "stranger", "first"]

    def test_a_history_counts_until_its_workflow_ends(self, cache: Any) -> None:
        metadata = {"workflow_id": "w1", "agent_id": "a", "client_id": "c"}
        said: list[int] = []
        for turn, length in enumerate((300, 500)):
            said += prompt(turn, length)
            answer = prompt(10 + turn, 20)
            insert(cache, [*said, *answer])
            cache._learn(finished_request(said, answer, metadata))
            said += answer
        scheduling = StatusAwareScheduling(cache, 1.0)
        waiting = request(cache, "waiting", prompt(5, 400), workflow="w2")
        running = request(cache, "running", prompt(6, 10), workflow="w1")
        scheduler = FakeScheduler(waiting, running=[running])
        form(scheduling, scheduler)
        assert scheduler.shown == []
        cache.apply_control(ServiceUpdate(closed=(W1,)))
        form(scheduling, scheduler)
        assert scheduler.shown == ["waiting"]

    @pytest.mark.parametrize(("said", "fits"), [(280, True), (320, False)])
    def test_of_its_requests_and_its_histories_the_larger_counts(
        self, cache: Any, said: int, fits: bool
    ) -> None:
        metadata = {
            "workflow_id": "w1",
            "agent_id": "a",
            "client_id": "c",
            "fixed_prefix_tokens": 0,
        }
        history = prompt(0, said)
        insert(cache, history)
        cache._learn(finished_request(history[:100], history[100:120], metadata))
        cache._learn(finished_request(history[:200], history[200:], metadata))
        running = request(cache, "running", prompt(6, 300), workflow="w1")
        waiting = request(cache, "waiting", prompt(5, 690), workflow="w2")
        scheduler = FakeScheduler(waiting, running=[running])
        form(StatusAwareScheduling(cache, 1.0), scheduler)
        assert (scheduler.shown == ["waiting"]) is fits

    def test_what_a_running_request_reads_counts(self, cache: Any) -> None:
        scheduling = StatusAwareScheduling(cache, 1.0)
        queue = [request(cache, w, prompt(n, 700), workflow=w) for n, w in enumerate(("w1", "w2"))]
        form(scheduling, FakeScheduler(*queue))
        scheduler = FakeScheduler(queue[1], running=[queue[0]])
        form(scheduling, scheduler)
        assert scheduler.shown == []

    def test_a_workflow_that_runs_keeps_its_place(self, cache: Any) -> None:
        scheduling = StatusAwareScheduling(cache, 1.0)
        running = request(cache, "running", prompt(1, 700), workflow="w2")
        queue = [
            request(cache, "other", prompt(2, 700), workflow="w1"),
            request(cache, "same", prompt(4, 600), workflow="w2"),
        ]
        scheduler = FakeScheduler(*queue, running=[running])
        form(scheduling, scheduler)
        assert scheduler.shown == ["same"]

    def test_nobody_is_held_while_all_fit(self, cache: Any) -> None:
        queue = [request(cache, w, prompt(n, 400), workflow=w) for n, w in enumerate(("w1", "w2"))]
        scheduler = FakeScheduler(*queue)
        form(StatusAwareScheduling(cache, 1.0), scheduler)
        assert scheduler.shown == ["w1", "w2"]

    @pytest.mark.parametrize(("overcommit", "shown"), [(1.5, ["w1", "w2"]), (1.3, ["w1"])])
    def test_the_overcommit_is_the_limit(
        self, cache: Any, overcommit: float, shown: list[str]
    ) -> None:
        queue = [request(cache, w, prompt(n, 700), workflow=w) for n, w in enumerate(("w1", "w2"))]
        scheduler = FakeScheduler(*queue)
        form(StatusAwareScheduling(cache, overcommit), scheduler)
        assert scheduler.shown == shown

    def test_a_shared_prefix_counts_once(self, cache: Any) -> None:
        shared = prompt(7, 600)
        insert(cache, shared)
        metadata = {"workflow_id": "w1", "agent_id": "a", "client_id": "c"}
        cache._learn(finished_request(shared, (), metadata))
        queue = [
            request(cache, w, [*shared, *prompt(n, 150)], workflow=w)
            for n, w in enumerate(("w1", "w2"))
        ]
        scheduler = FakeScheduler(*queue)
        form(StatusAwareScheduling(cache, 1.0), scheduler)
        assert scheduler.shown == ["w1", "w2"]

    def test_the_clock_is_needed_while_somebody_waits(self, cache: Any) -> None:
        scheduling = StatusAwareScheduling(cache, 1.0)
        form(scheduling, FakeScheduler(request(cache, "a", prompt(1), workflow="w1")))
        assert scheduling.needs_clock
        form(scheduling, FakeScheduler())
        assert not scheduling.needs_clock

    def test_a_clock_that_stood_still_makes_nobody_overdue(self, cache: Any) -> None:
        scheduling = StatusAwareScheduling(cache, 1.0)
        queue = [request(cache, w, prompt(n, 700), workflow=w) for n, w in enumerate(("w1", "w2"))]
        no_tick(cache)
        form(scheduling, FakeScheduler(*queue))
        assert scheduling.needs_clock
        tick(cache, 5000.0)
        scheduler = FakeScheduler(*queue)
        form(scheduling, scheduler)
        assert scheduler.shown == ["w1"]
