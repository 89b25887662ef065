from __future__ import annotations

from pathlib import Path

import pytest

from kvflow.bench.arms import ARMS, STORAGE_FOLDER_VARIABLE, ArmCache, arm_cache, choose_arms
from kvflow.bench.running import ArmSetup, engine_options
from kvflow.engine import EngineCommand, EngineOptions
from kvflow.engine.command import build_command
from kvflow.engine.flags import flag_value
from kvflow.errors import InvalidInputError
from tests.bench.made_up import cache_sizes, scenario


def sglang_command(name: str, **sizes: object) -> EngineCommand:
    """The command line of an arm on a cache of these sizes."""
    return build_command(
        options_of(name, **sizes),
        model_path="/models/m",
        device="cpu",
        environ={},
        cores=[0],
        sglang_version="0.5.23",
    )


def options_of(name: str, **sizes: object) -> EngineOptions:
    arm = ARMS[name]
    setup = ArmSetup(
        arm=arm,
        cache=arm_cache(arm, cache_sizes(**sizes), needed_tokens=9000),
        model="smollm2",
        device="cpu",
        engine_args=("--max-running-requests", "2"),
        env={"KVFLOW_LOAD": "load"},
        folder=Path("/logs"),
        storage_dir=Path("/storage"),
        warm_up_tokens=10,
    )
    return engine_options(setup, 1234, "http://127.0.0.1:1" if arm.uses_kvflow else None)


def test_without_a_host_tier_those_that_would_be_the_same_are_left_out() -> None:
    assert [arm.name for arm in choose_arms(None, scenario())] == [
        "limit",
        "lru",
        "priority",
        "kvflow",
    ]
    assert [arm.name for arm in choose_arms(None, scenario(host_tokens=3200))] == list(ARMS)


def test_arms_run_in_their_own_order() -> None:
    assert [arm.name for arm in choose_arms(["kvflow", "lru"], scenario())] == ["lru", "kvflow"]


@pytest.mark.parametrize("names", [["vllm"], [], ["lru", "hicache-write-back"]])
def test_arms_that_cannot_run_are_refused(names: list[str]) -> None:
    with pytest.raises(InvalidInputError) as caught:
        choose_arms(names, scenario())
    assert caught.value.field == ("--arms",)


@pytest.mark.parametrize(
    ("device_tokens", "host_tokens", "page"),
    [
        (2048, 4624, 16),
        (6144, 18448, 16),
        (500_000, 1_999_984, 16),
        (3000, 3000, 1),
        (640, 160, 64),
    ],
)
def test_sglang_works_out_the_host_tier_that_was_asked_for(
    device_tokens: int, host_tokens: int, page: int
) -> None:
    cache = arm_cache(
        ARMS["kvflow"],
        cache_sizes(device_tokens=device_tokens, host_tokens=host_tokens, page_tokens=page),
        needed_tokens=0,
    )
    # As SGLang does (0.5.23, mem_cache/pool_host/base.py), from the flag as it is written.
    ratio = float(f"{cache.hicache_ratio:g}")
    pages = int(device_tokens * ratio) // page + 1
    assert abs(pages * page - host_tokens) <= page * (1 if host_tokens % page else 0)


def test_the_limit_holds_everything_and_has_no_other_tier() -> None:
    cache = arm_cache(ARMS["limit"], cache_sizes(host_tokens=3200, storage=True), 9000)
    assert cache == ArmCache(9000, 0, False, 16)
    assert cache.hicache_ratio is None
    assert arm_cache(ARMS["limit"], cache_sizes(), 10).device_tokens == 1600


def test_stock_without_hicache_has_neither_host_nor_storage() -> None:
    for name in ("lru", "priority"):
        command = sglang_command(name, host_tokens=3200, storage=True)
        assert "--enable-hierarchical-cache" not in command.argv
        assert "--hicache-storage-backend" not in command.argv
        assert STORAGE_FOLDER_VARIABLE not in command.env


def test_each_arm_gets_its_policy_and_all_get_what_is_for_all() -> None:
    policies = {
        name: flag_value(sglang_command(name, host_tokens=3200).argv, "--radix-eviction-policy")
        for name in ARMS
    }
    assert policies.pop("priority") == "priority"
    assert set(policies.values()) == {None}
    writing = {
        name: flag_value(sglang_command(name, host_tokens=3200).argv, "--hicache-write-policy")
        for name in ARMS
    }
    assert writing == {
        "limit": None,
        "lru": None,
        "priority": None,
        "hicache-write-through": "write_through",
        "hicache-write-back": "write_back",
        "kvflow-eviction": "write_through",
        "kvflow": "write_through",
    }
    for name in ARMS:
        command = sglang_command(name, host_tokens=3200)
        assert flag_value(command.argv, "--max-running-requests") == "2"
        assert command.env["KVFLOW_LOAD"] == "load"
        assert ("kvflow" in command.env["SGLANG_PLUGINS"].split(",")) == ARMS[name].uses_kvflow


def test_only_the_full_arm_prefetches() -> None:
    assert options_of("kvflow").env["KVFLOW_PREFETCH"] == "on"
    assert options_of("kvflow-eviction").env["KVFLOW_PREFETCH"] == "off"
    assert "KVFLOW_PREFETCH" not in options_of("lru").env


def test_the_storage_tier_is_in_a_folder_of_the_arm() -> None:
    options = options_of("hicache-write-through", host_tokens=3200, storage=True)
    assert options.env[STORAGE_FOLDER_VARIABLE] == "/storage"
    assert flag_value(options.extra_args, "--hicache-storage-backend") == "file"
