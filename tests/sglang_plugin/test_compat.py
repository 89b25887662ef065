"""Each thing the plugin relies on in SGLang, one test each, so that a failure names the change.

Where the versions differ, what is checked is what the installed one (0.5.23) has.
"""

from __future__ import annotations

import inspect
import logging
import warnings
from collections.abc import Callable, Iterator
from operator import attrgetter
from pkgutil import resolve_name
from types import SimpleNamespace
from typing import Any

import pytest

from kvflow.errors import UnsupportedEngineError
from kvflow.sglang_plugin import compat
from kvflow.sglang_plugin.runtime import PluginRuntime
from kvflow.sglang_plugin.settings import PluginSettings
from kvflow.sglang_plugin.transfers import SLOTS_LEFT_TO_REQUESTS
from tests.sglang_plugin.caches import FULL
from tests.sglang_plugin.hicache import Engine, SteppedStream, build_engine, patched_sglang


def resolve(path: str) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # SGLang's own, while it is imported
            return resolve_name(path)
    except (ImportError, AttributeError) as error:
        raise AssertionError(f"SGLang no longer has {path}: {error}") from None


MEM = "sglang.srt.mem_cache"
MANAGERS = "sglang.srt.managers"
CORE = f"{MEM}.unified_cache.unified_tree_core:UnifiedTreeCore"
CACHE = f"{MEM}.unified_radix_cache:UnifiedRadixCache"
CONTROLLER = f"{MEM}.hybrid_cache.hybrid_cache_controller:HybridCacheController"
RECEIVER = f"{MANAGERS}.scheduler_components.request_receiver:SchedulerRequestReceiver"
SLEEPER = f"{MANAGERS}.scheduler_components.idle_sleeper:IdleSleeper"
SCHEDULER = f"{MANAGERS}.scheduler:Scheduler"


def source(path: str) -> str:
    return inspect.getsource(resolve(path))


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    """SGLang's own cache with a host pool; a request was computed in it."""
    with patched_sglang(), build_engine() as engine:
        engine.compute([1, 2, 3])
        yield engine


@pytest.mark.parametrize(
    ("path", "parameters"),
    [
        (f"{CORE}.reset", ["self"]),
        (f"{CORE}._split_node", ["self", "key", "child", "split_len"]),
        (f"{CORE}._unregister_node", ["self", "node"]),
        (f"{CORE}._evict_host_leaf", ["self", "node", "tracker", "device_frees", "host_frees"]),
        (f"{CORE}.node_by_id", ["self", "node_id"]),
        (f"{CORE}._demote", ["self", "node", "tracker", "device_frees", "host_frees"]),
        (f"{CORE}._can_reclaim_full_host_duplicate", ["self", "node"]),
        (
            f"{CORE}._release_full_host_duplicate",
            ["self", "node", "tracker", "device_frees", "host_frees", "cache_actions"],
        ),
        (f"{CACHE}.reset", ["self"]),
        (f"{CACHE}.init_hicache", ["self", "server_args", "params"]),
        (f"{CACHE}.evict", ["self", "params"]),
        (f"{CACHE}.evict_for_alloc", ["self", "params"]),
        (f"{CACHE}.evict_host", ["self", "num_tokens", "component_type"]),
        (f"{CACHE}.checkpoint_into_tree", ["self", "req", "up_to"]),
        (f"{CACHE}._execute_kv_backup", ["self", "node_id"]),
        (f"{CACHE}._apply_cache_actions", ["self", "actions"]),
        (f"{CACHE}.check_hicache_events", ["self"]),
        (f"{CACHE}.loading_check", ["self", "finish_count"]),
        (f"{CACHE}.init_load_back", ["self", "params"]),
        (f"{CACHE}.load_back", ["self", "node_id", "mem_quota", "req"]),
        (f"{CACHE}.ready_to_load_host_cache", ["self"]),
        (f"{CACHE}.release_aborted_request", ["self", "request"]),
        (f"{CACHE}.get_last_hash_value", ["self", "node_id"]),
        (f"{CACHE}.get_prefix_hash_values", ["self", "node_id"]),
        (
            f"{CACHE}.prefetch_from_storage",
            [
                "self",
                "request",
                "last_host_node_id",
                "new_input_tokens",
                "last_hash",
                "prefix_keys",
                "matched_prefix_tokens",
                "extra_key",
                "cache_salt",
            ],
        ),
        (f"{CONTROLLER}.load", ["self", "host_indices", "priority", "node_id"]),
        (f"{CONTROLLER}.start_loading", ["self"]),
        (f"{RECEIVER}._pull_raw_reqs", ["self"]),
        (f"{SLEEPER}.maybe_sleep", ["self"]),
        (f"{SCHEDULER}.process_input_requests", ["self", "recv_reqs"]),
        (f"{SCHEDULER}._get_new_batch_prefill_raw", ["self"]),
        (f"{SCHEDULER}.run_batch", ["self", "batch"]),
        (f"{SCHEDULER}.process_batch_result", ["self", "batch", "result"]),
        (f"{SCHEDULER}.flush_cache", ["self"]),
        (f"{SCHEDULER}.on_idle", ["self"]),
        (f"{MEM}.registry:register_radix_cache_backend", ["name", "factory"]),
        (
            f"{MEM}.unified_cache.tree_core_registry:register_tree_core_backend",
            ["name", "factory"],
        ),
    ],
)
def test_signature(path: str, parameters: list[str]) -> None:
    found = list(inspect.signature(resolve(path)).parameters)
    assert found[: len(parameters)] == parameters, f"{path} takes {found} now"


@pytest.mark.parametrize(
    "method", ["_evict_device_start", "_evict_device_next_node", "_evict_device_end"]
)
def test_component_still_holds_the_heap(method: str) -> None:
    from kvflow.sglang_plugin.tree import FullComponent

    assert method in vars(FullComponent), f"FullComponent.{method} moved: who chooses victims now?"
    assert "drive_host_eviction" in vars(FullComponent)


def test_leaf_sets_change_through_add_and_discard_alone() -> None:
    core = resolve(CORE)
    text = inspect.getsource(core)
    for leaves in ("evictable_device_leaves", "evictable_host_leaves"):
        uses = {
            line.split(f"{leaves}.", 1)[1].split("(")[0]
            for line in text.splitlines()
            if f"{leaves}." in line
        }
        assert uses <= {"add", "discard"}, f"{leaves} is used through {uses} now"


def test_split_returns_the_upper_node_first() -> None:
    text = source(f"{CORE}._split_node")
    assert text.rstrip().endswith("return new_node, action")


@pytest.mark.parametrize(
    ("where", "names"),
    [
        (
            "cache",
            [
                "cache_controller",
                "components",
                "disable",
                "enable_storage",
                "hicache_storage_pass_prefix_keys",
                "ongoing_load_back",
                "ongoing_prefetch",
                "page_size",
                "prefetch_loaded_tokens_by_reqid",
                "prefetch_threshold",
                "token_to_kv_pool_allocator",
                "tree_core",
            ],
        ),
        (
            "cache.tree_core",
            [
                "evictable_device_leaves",
                "evictable_host_leaves",
                "full_host_duplicates",
                "is_eagle",
                "page_size",
                "root_node",
            ],
        ),
        (
            "cache.cache_controller",
            ["ack_load_queue", "layer_done_counter", "load_queue", "mem_pool_host"],
        ),
        ("cache.cache_controller.mem_pool_host", ["alloc", "available_size", "free"]),
        ("cache.cache_controller.mem_pool_host", ["size_per_token"]),
        ("cache.token_to_kv_pool_allocator", ["available_size", "free", "size"]),
        (
            "node",
            [
                "backuped",
                "children",
                "component_data",
                "evicted",
                "id",
                "key",
                "last_access_time",
                "parent",
            ],
        ),
    ],
)
def test_attributes(engine: Engine, where: str, names: list[str]) -> None:
    ((node, _), *_) = engine.nodes()
    owner = node if where == "node" else attrgetter(where)(engine)
    missing = [name for name in names if not hasattr(owner, name)]
    assert not missing, f"{where} ({type(owner).__name__}) no longer has {missing}"


class TestTree:
    @pytest.mark.parametrize("method", ["evict_device_leaf", "demote"])
    def test_what_goes_to_host_memory_is_demoted(self, method: str) -> None:
        assert "self._demote(" in source(f"{CORE}.{method}")

    def test_what_leaves_the_tree_is_unregistered(self) -> None:
        assert "self._unregister_node(" in source(f"{CORE}._remove_leaf_from_parent")

    def test_locks_are_counted_where_a_victim_is_looked_for(self, engine: Engine) -> None:
        ((node, _), *_) = engine.nodes()
        data = node.component_data[FULL]
        assert data.lock_ref == 0
        params = engine.cache.inc_lock_ref(node.id).to_dec_params()
        assert data.lock_ref == 1
        engine.cache.dec_lock_ref(node.id, params)

    def test_host_duplicates_are_nodes_by_their_id(self, engine: Engine) -> None:
        duplicates = engine.cache.tree_core.full_host_duplicates
        assert duplicates
        assert all(node.id == number for number, node in duplicates.items())

    def test_a_request_enters_by_the_checkpoint_at_its_end_and_before(
        self, engine: Engine, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        finished: list[bool] = []
        original = engine.cache.checkpoint_into_tree

        def spy(req: Any, **kwargs: Any) -> None:
            finished.append(req.finished())
            original(req, **kwargs)

        monkeypatch.setattr(engine.cache, "checkpoint_into_tree", spy)
        engine.compute([5, 6, 7])
        assert finished == [False, True]


class TestLoads:
    def test_a_load_lets_the_computing_stream_go_first(self) -> None:
        assert "load_fence_stream" in source(f"{CONTROLLER}.start_loading")

    def test_loads_share_one_stream(self) -> None:
        text = source(f"{MEM}.l2_transfer:L2TransferEngine")
        assert "self.host_to_device_stream" in text
        assert text.count("self.host_to_device_stream =") == 1

    def test_three_of_them_have_slots(self, engine: Engine) -> None:
        slots = engine.controller.layer_done_counter.num_counters
        assert slots == SLOTS_LEFT_TO_REQUESTS + 1, "how many may prefetches take now?"

    def test_their_ends_are_queued_with_what_was_loaded(self) -> None:
        fields = resolve(f"{MANAGERS}.cache_controller:HiCacheAck")._fields
        assert {"start_event", "finish_event", "node_ids", "num_tokens", "timing_enabled"} <= {
            *fields
        }

    def test_nodes_are_resident_as_soon_as_a_load_is_submitted(self) -> None:
        with patched_sglang(), build_engine() as engine:
            engine.compute([1, 2, 3])
            engine.move_to_host()
            ((node, _),) = engine.nodes()
            assert engine.cache.load_back(node.id, req=None)
            assert node.id in engine.cache.ongoing_load_back
            assert engine.cache.ready_to_load_host_cache() >= 0
            assert not engine.copies.idle
            assert not node.evicted
            engine.settle()
            assert node.id not in engine.cache.ongoing_load_back

    def test_a_batch_says_which_load_it_waits_for(self) -> None:
        text = source(f"{SCHEDULER}._get_new_batch_prefill_raw")
        assert "self.waiting_queue" in text
        assert "new_batch.hicache_consumer_index = (" in text
        assert "set_hicache_consumer(batch.hicache_consumer_index)" in source(
            f"{MANAGERS}.tp_worker:TpModelWorker"
        )
        assert resolve(f"{MANAGERS}.schedule_batch:ScheduleBatch").hicache_consumer_index == -1

    def test_a_request_s_load_answers_with_a_count(self, engine: Engine) -> None:
        req = engine.submit([9, 8, 7])
        assert compat.nothing_loaded(req) == (0, req.last_node)
        engine.waiting.clear()

    @pytest.mark.parametrize("since_0_5_20", [{}, {"host_loaded_length": 0}])
    def test_a_request_s_load_answered_with_indices_up_to_0_5_21(
        self, since_0_5_20: dict[str, int]
    ) -> None:
        req = SimpleNamespace(prefix_indices=[4, 5], last_node=6, **since_0_5_20)
        assert compat.nothing_loaded(req) == ([], 6)

    def test_the_controller_knows_what_copies_wait_for(self, engine: Engine) -> None:
        assert {"load_fence_stream", "write_fence_stream"} <= set(vars(engine.controller))
        assert not {"start_loading", "start_writing"} & set(vars(engine.controller))

    @pytest.mark.parametrize("version", ["0.5.17", "0.5.18"])
    @pytest.mark.parametrize("direction", ["load", "write"])
    def test_what_computes_goes_first_where_the_controller_knows_no_fence(
        self, version: str, direction: str
    ) -> None:
        """A batch under way writes to rows that a load is given, or that a backup reads."""
        computing, copies = SteppedStream(), SteppedStream()
        done: list[str] = []
        controller = SimpleNamespace(
            start_loading=lambda: copies.copy(lambda: done.append("load"), 0),
            start_writing=lambda: copies.copy(lambda: done.append("write"), 0),
        )
        if version == "0.5.17":
            vars(controller)[f"{direction}_stream"] = copies
        else:
            name = {"load": "host_to_device", "write": "device_to_host"}[direction]
            controller.l2_transfer_engine = SimpleNamespace(**{f"{name}_stream": copies})
        compat.complete_fences(controller, computing)
        assert compat.computing_stream(controller) is computing
        computing.copy(lambda: done.append("compute"), 0)
        {"load": controller.start_loading, "write": controller.start_writing}[direction]()
        copies.close()
        assert done == ["compute", direction]


class TestStorage:
    def test_a_fetch_can_be_made_without_a_request(self) -> None:
        assert compat.storage_prefetch_supported()
        handle, same, other = (compat.request_handle(rid) for rid in ("a", "a", "b"))
        assert {handle: 1}.get(same) == 1
        assert handle != other
        assert handle.rid == "a"

    def test_what_it_brought_is_known_by_its_handle_or_by_the_id_of_0_5_20(self) -> None:
        handle = compat.request_handle("a")
        assert compat.tokens_fetched({handle: 3, "a": 4}, handle) == 3
        assert compat.tokens_fetched({"a": 4}, handle) == 4
        assert compat.tokens_fetched({"a": 4}, "a") == 4
        assert compat.tokens_fetched({"b": 4}, handle) == 0
        assert compat.tokens_fetched({}, "a") == 0

    def test_a_short_fetch_is_declined(self) -> None:
        assert "< self.prefetch_threshold" in source(f"{CACHE}.prefetch_from_storage")

    def test_memory_is_taken_while_events_are_polled(self) -> None:
        assert "_drain_storage_control_queues_impl(" in source(f"{CACHE}.check_hicache_events")
        assert "evict_host=self.evict_host" in source(CACHE)

    def test_room_is_asked_for_whatever_is_free(self) -> None:
        assert "evict_host(hit_tokens)" in source(f"{CONTROLLER}.allocate_storage_hit")


class TestScheduler:
    @pytest.mark.parametrize("question", ["is_decode", "is_extend"])
    def test_a_batch_knows_its_mode(self, question: str) -> None:
        mode = resolve("sglang.srt.model_executor.forward_batch_info:ForwardMode")
        assert callable(getattr(mode, question))

    def test_an_idle_one_polls_sockets(self) -> None:
        assert "self.poller.poll(" in source(f"{SLEEPER}.maybe_sleep")

    def test_a_batch_knows_how_much_it_computes(self) -> None:
        batch = resolve(f"{MANAGERS}.schedule_batch:ScheduleBatch")
        assert {"extend_num_tokens", "reqs"} <= set(batch.__annotations__)


@pytest.mark.parametrize("version", ["0.5.10", "0.5.16", "0.6.0", "0.5.24"])
def test_unknown_version_is_refused_and_sglang_left_alone(
    monkeypatch: pytest.MonkeyPatch, version: str
) -> None:
    from sglang.srt.mem_cache.registry import registered_radix_cache_backends

    monkeypatch.setattr(compat, "version", lambda name: version)
    before = registered_radix_cache_backends()
    with pytest.raises(UnsupportedEngineError, match=rf"SGLang {version}.*0\.5\.23"):
        PluginRuntime(PluginSettings()).install()
    assert registered_radix_cache_backends() == before


@pytest.mark.parametrize("version", [*compat.SUPPORTED, "0.5.23+cpu"])
def test_known_versions_are_accepted(monkeypatch: pytest.MonkeyPatch, version: str) -> None:
    monkeypatch.setattr(compat, "version", lambda name: version)
    assert compat.check_version() == version


def test_hooks_do_nothing_without_our_cache(caplog: pytest.LogCaptureFixture) -> None:
    runtime = PluginRuntime(PluginSettings())
    requests: list[Any] = [object()]
    assert runtime.add_messages(requests) is None
    assert runtime.add_messages(None) is None
    seen: list[Any] = []
    original: Callable[[Any, Any], str] = lambda scheduler, reqs: seen.append(reqs) or "done"  # noqa: E731
    assert runtime.take_messages(original, object(), requests) == "done"
    assert seen == [requests]
    assert caplog.records == [] or all(r.levelno < logging.WARNING for r in caplog.records)
