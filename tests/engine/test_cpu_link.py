from __future__ import annotations

import os
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvflow.engine import cpu_link, cpu_support
from kvflow.engine.command import STAND_INS_DIR
from kvflow.engine.cpu_link import (
    LINK_DELAY_VARIABLE,
    LINK_MODE_VARIABLE,
    LINK_VARIABLE,
    HostStream,
    LinkDevice,
    LinkEvent,
    LinkSettings,
    LinkStream,
)
from kvflow.engine.cpu_support import CPU_ENGINE_VARIABLE, copy_tokens
from kvflow.errors import InvalidInputError

torch = pytest.importorskip("torch")

WAIT_S = 30
device = LinkDevice()


class FakeTime:
    """A clock that only sleeping moves."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.slept_s: list[float] = []

    def clock(self) -> float:
        return self.now_s

    def sleep(self, duration_s: float) -> None:
        self.slept_s.append(duration_s)
        self.now_s += duration_s


class Gate:
    """A copy that stops the link until it is opened."""

    def __init__(self, link: LinkStream) -> None:
        self._entered = threading.Event()
        self._open = threading.Event()
        link.copy(self._copy, 0)

    def _copy(self) -> None:
        self._entered.set()
        assert self._open.wait(WAIT_S)

    def reached(self) -> None:
        assert self._entered.wait(WAIT_S)

    def open(self) -> None:
        self._open.set()


Links = Callable[..., LinkStream]


@pytest.fixture
def links() -> Iterator[Links]:
    made: list[LinkStream] = []

    def make(time: FakeTime | None = None, **kwargs: float) -> LinkStream:
        injected = () if time is None else (time.clock, time.sleep)
        made.append(LinkStream(LinkSettings(**kwargs), *injected))
        return made[-1]

    yield make
    for link in made:
        link.close()


def recorded(link: LinkStream) -> LinkEvent:
    event = LinkEvent()
    event.record(link)
    return event


def fail() -> None:
    raise OSError("bad memory")


@pytest.mark.parametrize(
    ("env", "expected"),
    [
        ({}, LinkSettings()),
        ({LINK_VARIABLE: "", LINK_DELAY_VARIABLE: " "}, LinkSettings()),
        ({LINK_VARIABLE: "2e9"}, LinkSettings(bytes_per_s=2e9)),
        ({LINK_DELAY_VARIABLE: "0"}, LinkSettings()),
        ({LINK_DELAY_VARIABLE: ".5", LINK_MODE_VARIABLE: "async"}, LinkSettings(delay_s=0.5)),
        ({LINK_MODE_VARIABLE: "Sync"}, None),
    ],
)
def test_settings(env: dict[str, str], expected: LinkSettings | None) -> None:
    assert LinkSettings.from_env(env) == expected


@pytest.mark.parametrize(
    ("name", "text"),
    [
        *((LINK_VARIABLE, text) for text in ("0", "-1", "fast", "inf", "nan")),
        *((LINK_DELAY_VARIABLE, text) for text in ("-1", "soon", "inf", "nan")),
        (LINK_MODE_VARIABLE, "off"),
    ],
)
def test_settings_refuse_and_name_the_variable(name: str, text: str) -> None:
    with pytest.raises(InvalidInputError, match=name) as caught:
        LinkSettings.from_env({name: text})
    assert caught.value.field == (name,)


def test_an_event_is_complete_unless_work_is_under_way(links: Links) -> None:
    event = LinkEvent(enable_timing=True)
    assert event.query()
    event.synchronize()
    event.record()
    assert event.query()
    link = links()
    gate = Gate(link)
    event.record(link)
    assert not event.query()
    gate.open()
    event.synchronize()
    assert event.query()


def test_events_complete_in_order_one_by_one(links: Links) -> None:
    link = links()
    gates, events = [], []
    for _ in range(3):
        gates.append(Gate(link))
        events.append(recorded(link))
    for done, gate in enumerate(gates):
        gate.reached()
        assert [event.query() for event in events] == [n < done for n in range(3)]
        gate.open()
    link.synchronize()
    assert all(event.query() for event in events)


def test_a_second_record_is_not_completed_by_the_first(links: Links) -> None:
    link = links()
    first, event = Gate(link), recorded(link)
    second = Gate(link)
    event.record(link)
    first.open()
    second.reached()
    assert not event.query()
    second.open()
    event.synchronize()


def test_a_waiter_blocks_until_the_event_is_complete(links: Links) -> None:
    link = links()
    gate, event = Gate(link), recorded(link)
    passed = threading.Event()

    def wait() -> None:
        device.current_stream().wait_event(event)
        assert event.query()
        passed.set()

    waiter = threading.Thread(target=wait)
    waiter.start()
    gate.reached()
    assert not passed.is_set()
    gate.open()
    assert passed.wait(WAIT_S)
    waiter.join()


def test_elapsed_time_is_that_of_the_link(links: Links) -> None:
    link = links(FakeTime(), bytes_per_s=1000.0)
    before = recorded(link)
    link.copy(lambda: None, 250)
    after = recorded(link)
    with pytest.raises(RuntimeError, match="complete"):
        after.elapsed_time(LinkEvent())
    link.synchronize()
    assert before.elapsed_time(after) == pytest.approx(250.0)


def test_one_link_waits_for_another_and_nobody_else_does(links: Links) -> None:
    ahead, behind = links(), links()
    gate = Gate(ahead)
    behind.wait_stream(ahead)
    order: list[str] = []
    behind.copy(lambda: order.append("behind"), 0)
    ahead.copy(lambda: order.append("ahead"), 0)
    gate.reached()
    assert order == []
    gate.open()
    ahead.synchronize()
    behind.synchronize()
    assert sorted(order) == ["ahead", "behind"]


def test_an_event_waited_for_on_a_link_is_the_record_before_the_wait(links: Links) -> None:
    ahead, behind = links(), links()
    event = recorded(ahead)
    event.wait(behind)
    gate = Gate(ahead)
    event.record(ahead)
    behind.synchronize()
    assert not event.query()
    gate.open()


def test_host_stream_waits_for_a_link_at_once(links: Links) -> None:
    link = links()
    ran: list[int] = []
    link.copy(lambda: ran.append(1), 0)
    HostStream().wait_stream(link)
    assert ran == [1]
    HostStream().wait_stream(torch.cpu.Stream())
    link.wait_stream(torch.cpu.Stream())


def test_the_current_stream_is_one_thread_s_and_restored(links: Links) -> None:
    link = links()
    seen: list[Any] = []
    with device.stream(link):
        assert cpu_link.current_link() is link
        with device.stream(HostStream()):
            assert cpu_link.current_link() is None
        other = threading.Thread(target=lambda: seen.append(cpu_link.current_link()))
        other.start()
        other.join()
        assert cpu_link.current_link() is link
    assert cpu_link.current_link() is None
    assert seen == [None]


def test_a_failed_copy_ends_the_link_and_hangs_nobody(
    links: Links, caplog: pytest.LogCaptureFixture
) -> None:
    link = links()
    good = recorded(link)
    link.copy(fail, 0)
    broken = recorded(link)
    ran: list[int] = []
    link.copy(lambda: ran.append(1), 0)
    later = recorded(link)
    with pytest.raises(RuntimeError, match="load from the host tier") as caught:
        broken.synchronize()
    assert isinstance(caught.value.__cause__, OSError)
    for ask in (later.synchronize, later.wait, link.synchronize, later.query):
        with pytest.raises(RuntimeError):
            ask()
    assert ran == []
    assert good.query()
    assert "bad memory" in caplog.text


def test_copies_take_their_bytes_over_the_bandwidth(links: Links) -> None:
    time = FakeTime()
    link = links(time, bytes_per_s=100.0)
    for size_bytes in (100, 50, 0, 250):
        link.copy(lambda: None, size_bytes)
    link.synchronize()
    assert time.slept_s == pytest.approx([1.0, 0.5, 2.5])


def test_an_idle_link_saves_nothing_up(links: Links) -> None:
    time = FakeTime()
    link = links(time, bytes_per_s=100.0)
    link.copy(lambda: None, 100)
    link.synchronize()
    time.now_s = 10.0
    link.copy(lambda: None, 100)
    link.synchronize()
    assert time.now_s == pytest.approx(11.0)


def test_not_slowed_unless_told(links: Links) -> None:
    time = FakeTime()
    link = links(time)
    link.copy(lambda: None, 10**12)
    with device.stream(link):
        pass
    link.synchronize()
    assert time.slept_s == []


def test_each_transfer_is_delayed_once(links: Links) -> None:
    time = FakeTime()
    link = links(time, bytes_per_s=100.0, delay_s=5.0)
    events = []
    for _ in range(2):
        with device.stream(link):
            link.copy(lambda: None, 100)
            link.copy(lambda: None, 100)
            events.append(recorded(link))
    link.synchronize()
    assert time.slept_s == pytest.approx([5.0, 1.0, 1.0] * 2)
    assert events[0].elapsed_time(events[1]) == pytest.approx(7000.0)


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 500), st.floats(0, 2), st.floats(0, 0.5)), max_size=20),
)
def test_the_bandwidth_holds_on_the_whole(copies: list[tuple[int, float, float]]) -> None:
    """Whatever a copy itself takes and whatever a sleep overshoots by."""
    time = FakeTime()
    overshoot_s = 0.0

    def sleep(duration_s: float) -> None:
        time.sleep(duration_s + overshoot_s)

    link = LinkStream(LinkSettings(bytes_per_s=100.0), time.clock, sleep)
    start = recorded(link)
    gate = Gate(link)
    gate.reached()  # everything is submitted at time zero
    scheduled_s = 0.0
    expected_s = 0.0
    ends: list[LinkEvent] = []
    expected: list[float] = []

    for size_bytes, copy_s, late_s in copies:

        def copy(copy_s: float = copy_s, late_s: float = late_s) -> None:
            nonlocal overshoot_s
            overshoot_s = late_s
            time.now_s += copy_s

        link.copy(copy, size_bytes)
        ends.append(recorded(link))
        expected_s += copy_s
        scheduled_s += size_bytes / 100.0
        if scheduled_s > expected_s:
            expected_s = scheduled_s + late_s
        expected.append(expected_s)
    gate.open()
    link.close()
    assert [start.elapsed_time(end) / 1e3 for end in ends] == pytest.approx(expected)


def test_the_thread_alone_uses_one_torch_thread(links: Links) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        counts: list[int] = []
        link = links()
        link.copy(lambda: counts.append(torch.get_num_threads()), 0)
        link.synchronize()
        newcomer = threading.Thread(target=lambda: counts.append(torch.get_num_threads()))
        newcomer.start()
        newcomer.join()
        assert [*counts, torch.get_num_threads()] == [1, 3, 3]
    finally:
        torch.set_num_threads(before)


def test_copies_queue_up_where_the_link_is_the_current_stream(links: Links) -> None:
    time = FakeTime()
    link = links(time, bytes_per_s=96.0)
    source = [torch.arange(12.0).reshape(6, 2), torch.ones(6, 2)]
    target = [torch.zeros(8, 2), torch.zeros(8, 2)]
    rows, places = torch.tensor([4, 5, 0]), torch.tensor([1, 2, 7])
    gate = Gate(link)
    with device.stream(link):
        copy_tokens(source, target, rows, places, page_size=1)
    assert target[0].count_nonzero() == 0
    gate.open()
    link.synchronize()
    assert torch.equal(target[0][places], source[0][rows])
    assert target[1].sum() == 6
    assert time.slept_s == pytest.approx([0.5])  # 2 layers x 3 rows x 2 floats: 48 bytes


def test_a_pool_made_under_inference_mode_can_be_written(links: Links) -> None:
    with torch.inference_mode():
        target = [torch.zeros(2, 1)]
    link = links()
    with device.stream(link):
        copy_tokens([torch.ones(2, 1)], target, torch.tensor([0]), torch.tensor([1]), page_size=1)
    link.synchronize()
    assert target[0].tolist() == [[0.0], [1.0]]


@pytest.fixture(scope="module")
def sglang() -> Any:
    if find_spec("sglang") is None:
        pytest.skip("needs SGLang: run `make install`")
    os.environ.setdefault("SGLANG_USE_CPU_ENGINE", "1")
    if str(STAND_INS_DIR) not in sys.path:
        sys.path.insert(0, str(STAND_INS_DIR))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from sglang.srt.managers import cache_controller
        from sglang.srt.mem_cache import l2_transfer, memory_pool
        from sglang.srt.mem_cache.allocator import TokenToKVPoolAllocator
        from sglang.srt.mem_cache.hybrid_cache import hybrid_cache_controller
        from sglang.srt.mem_cache.pool_host import base, mha, mla
    return SimpleNamespace(
        Allocator=TokenToKVPoolAllocator,
        base=base,
        controller=cache_controller,
        hybrid=hybrid_cache_controller,
        l2=l2_transfer,
        mha=mha,
        mla=mla,
        pools=memory_pool,
    )


@pytest.fixture
def linked(sglang: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """SGLang to be patched by the plugin; as it was again afterwards."""
    for holder, name in (
        (sglang.base, "HICACHE_HOST_MEMORY_RESERVE_BYTES"),
        (sglang.base.HostKVCache, "__init__"),
        (sglang.l2, "device_module"),
        (sglang.controller, "device_module"),
        (sglang.l2.L2TransferEngine, "__init__"),
    ):
        monkeypatch.setattr(holder, name, getattr(holder, name))
    for module in (sglang.mha, sglang.mla):
        monkeypatch.setattr(module, "transfer_kv_direct", copy_tokens, raising=False)
    monkeypatch.setenv(CPU_ENGINE_VARIABLE, "1")
    for name in (LINK_VARIABLE, LINK_DELAY_VARIABLE, LINK_MODE_VARIABLE):
        monkeypatch.delenv(name, raising=False)
    sglang.l2._timing_events_supported.cache_clear()
    yield sglang
    sglang.l2._timing_events_supported.cache_clear()


TOKENS = 32
LAYERS = 4


def build_controller(sglang: Any) -> Any:
    """SGLang's HiCache controller over two small pools, and its own thread for the link."""
    pool = sglang.pools.MHATokenToKVPool(
        size=TOKENS,
        page_size=1,
        dtype=torch.float32,
        head_num=2,
        head_dim=4,
        layer_num=LAYERS,
        device="cpu",
        enable_memory_saver=False,
    )
    (info,) = pool.get_device_pool_infos()
    host = sglang.mha.MHATokenToKVPoolHost(
        info.buffer_info,
        2.0,
        0,
        1,
        "layer_first",
        device_capacity_tokens=TOKENS,
        start_layer=pool.start_layer,
        end_layer=pool.end_layer,
    )
    return sglang.controller.HiCacheController(
        token_to_kv_pool_allocator=sglang.Allocator(TOKENS, torch.float32, "cpu", pool, False),
        mem_pool_host=host,
        page_size=1,
        tp_group=None,
        load_cache_event=threading.Event(),
        write_policy="write_through",
        io_backend="direct",
    )


def fill(pool: Any, rows: Any, seed: int) -> list[Any]:
    """Random KV in these rows of every layer; returns what each layer got."""
    generator = torch.Generator().manual_seed(seed)
    written = []
    for buffer in (*pool.k_buffer, *pool.v_buffer):
        written.append(torch.randn(len(rows), *buffer.shape[1:], generator=generator))
        buffer[rows] = written[-1]
    return written


def held(pool: Any, rows: Any) -> list[Any]:
    return [buffer[rows] for buffer in (*pool.k_buffer, *pool.v_buffer)]


def same(left: list[Any], right: list[Any]) -> bool:
    return all(map(torch.equal, left, right))


def test_a_load_runs_behind_the_scheduler_s_back(linked: Any) -> None:
    cpu_support.register()
    controller = build_controller(linked)
    link = controller.l2_transfer_engine.host_to_device_stream
    assert isinstance(link, LinkStream)
    pool, allocator = controller.mem_pool_device, controller.mem_pool_device_allocator
    rows = allocator.alloc(8)
    written = fill(pool, rows, seed=1)

    host_rows = controller.write(rows)
    assert controller.ack_write_queue[0].finish_event.query()  # done when the call returns
    for buffer in (*pool.k_buffer, *pool.v_buffer):
        buffer.zero_()

    gate = Gate(link)
    loaded = controller.load(host_rows, node_id=7)
    producer = controller.start_loading()
    ack = controller.ack_load_queue[0]
    counter = controller.layer_done_counter
    assert not ack.finish_event.query()
    assert not counter.events[producer].finish_event.query()
    assert all(not part.count_nonzero() for part in held(pool, loaded))

    passed = threading.Event()

    def attend() -> None:
        counter.set_consumer(producer)
        for layer in range(LAYERS):
            assert torch.equal(pool.get_key_buffer(layer)[loaded], written[layer])
            assert torch.equal(pool.get_value_buffer(layer)[loaded], written[LAYERS + layer])
        passed.set()

    attention = threading.Thread(target=attend)
    attention.start()
    gate.reached()
    assert not passed.is_set()
    gate.open()
    assert passed.wait(WAIT_S)
    attention.join()
    ack.finish_event.synchronize()
    assert ack.timing_enabled
    assert ack.start_event.elapsed_time(ack.finish_event) >= 0
    assert same(held(pool, loaded), written)
    link.close()


def test_layers_arrive_one_by_one_and_loads_in_order(linked: Any) -> None:
    cpu_support.register()
    controller = build_controller(linked)
    controller.l2_transfer_engine.host_to_device_stream.close()
    steps = threading.Semaphore(0)
    at_sleep = threading.Semaphore(0)
    time = FakeTime()

    def sleep(duration_s: float) -> None:
        at_sleep.release()
        assert steps.acquire(timeout=WAIT_S)
        time.sleep(duration_s)

    layer_bytes = 4 * 2 * 2 * 4 * 4  # tokens x K and V x heads x dimensions x float32
    link = LinkStream(LinkSettings(bytes_per_s=layer_bytes), time.clock, sleep)
    controller.l2_transfer_engine.host_to_device_stream = link
    pool, allocator = controller.mem_pool_device, controller.mem_pool_device_allocator
    written, loaded, producers = [], [], []
    for seed in range(2):
        rows = allocator.alloc(4)
        written.append(fill(pool, rows, seed))
        host_rows = controller.write(rows)
        loaded.append(controller.load(host_rows, node_id=seed))
        producers.append(controller.start_loading())

    events = [controller.layer_done_counter.events[producer].load_events for producer in producers]
    for done in range(2 * LAYERS):
        assert at_sleep.acquire(timeout=WAIT_S)  # that layer is copied, its time isn't up
        assert [event.query() for load in events for event in load] == [
            n < done for n in range(2 * LAYERS)
        ]
        assert [ack.finish_event.query() for ack in controller.ack_load_queue] == [
            done > LAYERS - 1,
            False,
        ]
        steps.release()
    link.synchronize()
    for rows, parts in zip(loaded, written, strict=True):
        assert same(held(pool, rows), parts)
    assert time.now_s == pytest.approx(2 * LAYERS)
    first, second = controller.ack_load_queue
    assert first.start_event.elapsed_time(second.finish_event) == pytest.approx(2e3 * LAYERS)
    link.close()


def test_a_counter_s_events_are_armed_again_by_the_next_loads(linked: Any) -> None:
    cpu_support.register()
    controller = build_controller(linked)
    link = controller.l2_transfer_engine.host_to_device_stream
    host_rows = controller.write(controller.mem_pool_device_allocator.alloc(2))
    counter = controller.layer_done_counter
    for turn in range(2 * counter.num_counters):
        gate = Gate(link)
        loaded = controller.load(host_rows)
        producer = controller.start_loading()
        assert producer == turn % counter.num_counters
        assert not any(event.query() for event in counter.events[producer].load_events)
        gate.open()
        controller.ack_load_queue.pop().finish_event.synchronize()
        controller.mem_pool_device_allocator.free(loaded)
    link.close()


def test_a_failed_load_reaches_the_scheduler(linked: Any) -> None:
    cpu_support.register()
    controller = build_controller(linked)
    link = controller.l2_transfer_engine.host_to_device_stream
    host_rows = controller.write(controller.mem_pool_device_allocator.alloc(2))
    controller.load(host_rows + 10_000)
    controller.layer_done_counter.set_consumer(controller.start_loading())
    with pytest.raises(RuntimeError, match="host tier"):
        controller.mem_pool_device.get_key_buffer(0)
    with pytest.raises(RuntimeError, match="host tier"):
        controller.ack_load_queue[0].finish_event.synchronize()
    link.close()


def test_registered_twice_there_is_one_link(linked: Any) -> None:
    cpu_support.register()
    init = linked.l2.L2TransferEngine.__init__
    assert init.kvflow_linked
    cpu_support.register()
    assert linked.l2.L2TransferEngine.__init__ is init


def test_sync_leaves_sglang_s_own(linked: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(LINK_MODE_VARIABLE, "sync")
    cpu_support.register()
    controller = build_controller(linked)
    assert linked.l2.device_module is torch.cpu
    assert not isinstance(controller.l2_transfer_engine.host_to_device_stream, LinkStream)
    pool, allocator = controller.mem_pool_device, controller.mem_pool_device_allocator
    rows = allocator.alloc(4)
    written = fill(pool, rows, seed=3)
    loaded = controller.load(controller.write(rows))
    controller.start_loading()
    assert same(held(pool, loaded), written)


def test_the_variables_reach_the_link(linked: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[LinkSettings] = []
    monkeypatch.setattr(cpu_link, "install", seen.append)
    monkeypatch.setenv(LINK_VARIABLE, "1e6")
    monkeypatch.setenv(LINK_DELAY_VARIABLE, "0.25")
    cpu_support.register()
    assert seen == [LinkSettings(1e6, 0.25)]
    monkeypatch.setenv(LINK_VARIABLE, "quick")
    with pytest.raises(SystemExit, match=f"{LINK_VARIABLE}.*'quick'"):
        cpu_support.register()


def test_without_a_transfer_engine_of_its_own_sglang_is_left_alone(
    linked: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "sglang.srt.mem_cache.l2_transfer", None)
    assert cpu_link.install(LinkSettings()) is False
    assert linked.controller.device_module is torch.cpu
