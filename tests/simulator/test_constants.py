"""Numbers that the simulator repeats because their module cannot be imported without SGLang."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import kvflow.sglang_plugin
from kvflow.sglang_plugin import runtime, transfers
from kvflow.simulator import cache, kvflow_side

PLUGIN = Path(kvflow.sglang_plugin.__file__).parent


def test_the_least_tail_that_is_cut_off() -> None:
    sources = "\n".join(path.read_text(encoding="utf-8") for path in PLUGIN.glob("*.py"))
    (value,) = re.findall(r"^MIN_SPLIT_TOKENS(?:: Final)? = (\d+)$", sources, re.MULTILINE)
    assert int(value) == cache.MIN_SPLIT_TOKENS


@pytest.mark.parametrize(
    ("ours", "plugins"),
    [
        (kvflow_side.CALIBRATION_TOKENS, transfers._CALIBRATION_TOKENS),
        (kvflow_side.MIN_TIMED_PREFILL_TOKENS, runtime.MIN_TIMED_PREFILL_TOKENS),
    ],
)
def test_what_is_timed(ours: object, plugins: object) -> None:
    assert ours == plugins


def test_one_load_ahead_at_a_time() -> None:
    """``_Site.slot_free`` takes it for granted; SGLang has three slots."""
    assert transfers.SLOTS_LEFT_TO_REQUESTS == 2
