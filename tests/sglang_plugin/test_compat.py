"""Each thing the plugin relies on in SGLang, one test each, so that a failure names the change."""

from __future__ import annotations

import inspect
import logging
import textwrap
import warnings
from collections.abc import Callable
from pkgutil import resolve_name
from typing import Any

import pytest

import tests.sglang_plugin.caches  # noqa: F401 - puts SGLang's stand-ins on the path
from kvflow.errors import UnsupportedEngineError
from kvflow.sglang_plugin import compat
from kvflow.sglang_plugin.runtime import PluginRuntime
from kvflow.sglang_plugin.settings import PluginSettings


def resolve(path: str) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # SGLang's own, while it is imported
            return resolve_name(path)
    except (ImportError, AttributeError) as error:
        raise AssertionError(f"SGLang no longer has {path}: {error}") from None


CORE = "sglang.srt.mem_cache.unified_cache.unified_tree_core:UnifiedTreeCore"
CACHE = "sglang.srt.mem_cache.unified_radix_cache:UnifiedRadixCache"
RECEIVER = "sglang.srt.managers.scheduler_components.request_receiver:SchedulerRequestReceiver"
SCHEDULER = "sglang.srt.managers.scheduler:Scheduler"


@pytest.mark.parametrize(
    ("path", "parameters"),
    [
        (f"{CORE}.reset", ["self"]),
        (f"{CORE}._split_node", ["self", "key", "child", "split_len"]),
        (f"{CORE}._unregister_node", ["self", "node"]),
        (f"{CORE}._evict_host_leaf", ["self", "node", "tracker", "device_frees", "host_frees"]),
        (f"{CORE}.node_by_id", ["self", "node_id"]),
        (f"{CACHE}.evict", ["self", "params"]),
        (f"{CACHE}._execute_kv_backup", ["self", "node_id"]),
        (f"{CACHE}._apply_cache_actions", ["self", "actions"]),
        (f"{RECEIVER}._pull_raw_reqs", ["self"]),
        (f"{SCHEDULER}.process_input_requests", ["self", "recv_reqs"]),
        ("sglang.srt.mem_cache.registry:register_radix_cache_backend", ["name", "factory"]),
        (
            "sglang.srt.mem_cache.unified_cache.tree_core_registry:register_tree_core_backend",
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
    source = inspect.getsource(core)
    for leaves in ("evictable_device_leaves", "evictable_host_leaves"):
        uses = {
            line.split(f"{leaves}.", 1)[1].split("(")[0]
            for line in source.splitlines()
            if f"{leaves}." in line
        }
        assert uses <= {"add", "discard"}, f"{leaves} is used through {uses} now"


def test_split_returns_the_upper_node_first() -> None:
    source = textwrap.dedent(inspect.getsource(resolve(f"{CORE}._split_node")))
    assert source.rstrip().endswith("return new_node, action")


@pytest.mark.parametrize("version", ["0.5.10", "0.5.20", "0.6.0", "0.5.24"])
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
