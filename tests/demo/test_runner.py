from __future__ import annotations

import pytest

from kvflow.demo.arms import ARMS
from kvflow.demo.runner import DemoOptions, _engine_options
from kvflow.errors import InvalidInputError


@pytest.mark.parametrize("rounds", [0, 1, 7])
def test_rounds_out_of_range_are_refused(rounds: int) -> None:
    with pytest.raises(InvalidInputError, match="2 to 6"):
        DemoOptions(arms=(ARMS["stock"],), rounds=rounds)


def test_engines_of_a_setting_differ_in_the_cache_only() -> None:
    stock = _engine_options(ARMS["stock+hicache"], "cpu", None)
    kvflow = _engine_options(ARMS["kvflow+hicache"], "cpu", "http://127.0.0.1:1")
    assert stock.radix == "stock"
    assert kvflow.radix == "kvflow"
    assert stock.env == {}
    assert kvflow.env == {"KVFLOW_SERVICE_URL": "http://127.0.0.1:1", "KVFLOW_PREFETCH": "on"}
    for name in ("model", "device", "page_size", "max_total_tokens", "hicache_ratio", "extra_args"):
        assert getattr(stock, name) == getattr(kvflow, name)


@pytest.mark.parametrize("name", ["kvflow+hicache-noprefetch", "kvflow"])
def test_an_arm_without_prefetch_switches_it_off(name: str) -> None:
    options = _engine_options(ARMS[name], "cpu", "http://127.0.0.1:1")
    assert options.env["KVFLOW_PREFETCH"] == "off"
