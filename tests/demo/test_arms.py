from __future__ import annotations

import pytest

from kvflow.demo.arms import ARMS, DEFAULT_ARMS, SETTINGS, choose_arms
from kvflow.errors import InvalidInputError


@pytest.mark.parametrize(
    ("setting", "caches"),
    [
        ("device-only", [("stock", False), ("kvflow", False)]),
        ("small-host", [("stock", False), ("kvflow", True), ("kvflow", False)]),
        ("large-host", [("stock", False), ("kvflow", True), ("kvflow", False)]),
    ],
)
def test_a_setting_is_run_with_stock_and_where_there_is_a_host_pool_without_prefetch_too(
    setting: str, caches: list[tuple[str, bool]]
) -> None:
    arms = [arm for arm in ARMS.values() if arm.setting.name == setting]
    assert [(arm.radix, arm.prefetch) for arm in arms] == caches


def test_an_arm_without_prefetch_is_named_so() -> None:
    arm = ARMS["kvflow+hicache-noprefetch"]
    assert arm.title == "KVFlow with HiCache, no prefetch"
    assert not arm.prefetch
    assert ARMS["kvflow+hicache"].prefetch
    assert set(DEFAULT_ARMS) == {name for name in ARMS if "noprefetch" not in name} - {
        "stock+large-hicache",
        "kvflow+large-hicache",
    }


def test_the_default_has_a_setting_without_and_one_with_a_host_pool() -> None:
    settings = [ARMS[name].setting for name in DEFAULT_ARMS]
    assert [setting.hicache_ratio is None for setting in settings] == [True, True, False, False]


def test_arms_run_in_a_fixed_order() -> None:
    assert [arm.name for arm in choose_arms(["kvflow+hicache", "stock"])] == [
        "stock",
        "kvflow+hicache",
    ]


@pytest.mark.parametrize(("names", "word"), [(["vllm"], "'vllm'"), ([], "no arm"), ([""], "''")])
def test_wrong_arms_are_refused_with_those_there_are(names: list[str], word: str) -> None:
    with pytest.raises(InvalidInputError) as caught:
        choose_arms(names)
    assert word in caught.value.problem
    assert "stock+hicache" in caught.value.problem


def test_tier_sizes_are_those_sglang_works_out() -> None:
    # As in its log: "Allocating kv hierarchical KV host pool: 4624 tokens".
    assert SETTINGS["small-host"].host_tokens == 4624
    assert SETTINGS["small-host"].capacity_tokens == 2048 + 4624
    assert SETTINGS["device-only"].capacity_tokens == 6144
