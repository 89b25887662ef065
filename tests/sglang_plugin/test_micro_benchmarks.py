"""The micro-benchmarks run, and what they write is what the tables need. Nothing is timed here."""

from __future__ import annotations

import json
import random
from array import array
from pathlib import Path
from typing import Any

import pytest

from benchmarks.plugin import micro, tables
from benchmarks.plugin.engine import ARMS, SCENARIOS, Scenario
from benchmarks.plugin.requests import PHASES, build_tree, engine_context
from benchmarks.plugin.samples import RAW_SAMPLES, in_turn, ratios, summary

MACHINE = {"cpu_model": "a CPU", "cpu_cores": 2, "python": "Python", "packages": {"sglang": "0"}}


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    path: Path = tmp_path_factory.mktemp("micro") / "result.json"
    micro.main(["--quick", "--output", str(path)])
    written: dict[str, Any] = json.loads(path.read_text())
    return written


def test_every_operation_is_measured_on_every_core(result: dict[str, Any]) -> None:
    seen = {(row["operation"], core) for row in result["trees"] for core in row["us"]}
    cores = {"python", "rust", "kvflow"}
    assert seen == {(op, core) for op in ("match", "insert", "split") for core in cores} | {
        ("learn", "kvflow")
    }
    assert {(r["tier"], r["core"]) for r in result["eviction"]} == {
        (tier, core) for tier in ("device", "host") for core in cores
    }


def test_a_request_is_measured_in_all_its_phases(result: dict[str, Any]) -> None:
    for row in result["requests"]:
        for arm in row["us"].values():
            assert arm.keys() == {*PHASES, "total"}
            once = row["scenario"]["output_tokens"] == 1
            for phase, figures in arm.items():
                assert (figures["median"] == 0) == (once and phase == "prefilled")


def test_what_is_computed_is_the_difference_over_the_gpus_time(result: dict[str, Any]) -> None:
    for row in result["requests"]:
        computed = row["computed"]
        assert computed["share"]["rust"] == 0
        for arm, us in computed["extra_us"].items():
            share = us / computed["gpu_us_per_request"]
            assert computed["share"][arm] == pytest.approx(share, rel=0.01)


def test_hooks_are_measured_with_and_without_workflows(result: dict[str, Any]) -> None:
    states = {(row["tiers"], row["live_workflows"] > 0) for row in result["hooks"]}
    assert states == {(t, live) for t in ("device", "device and host") for live in (True, False)}


@pytest.mark.parametrize("name", tables.TABLES)
def test_tables_of_the_result(result: dict[str, Any], name: str) -> None:
    file, render = tables.TABLES[name]
    assert file == micro.RESULT.name
    made = render(result)
    if name == "plugin_micro_engine":
        assert made == "Not measured yet.\n"
        return
    lines = [line for line in made.splitlines() if line.startswith("|")]
    assert len(lines) > 2
    assert len({line.count("|") for line in lines}) == 1
    assert result["environment"]["cpu_model"] in made


def test_table_of_the_engines() -> None:
    figures = {"median": 1.25, "p99": 2.0}
    arm = {
        "scheduler_us_per_request": figures,
        "scheduler_over_rust": figures,
        "throughput_over_rust": figures,
    }
    row = {
        "scenario": {"name": "decode"},
        "turns": 3,
        "outputs_identical": False,
        "arms": {one.name: arm for one in ARMS},
    }
    made = tables.engine({"engine": [row], "environment": MACHINE})
    assert "| decode | 1.2 us (2.0 us) |" in made
    assert "1.250" in made
    assert "NOT identical" in made


def test_samples_are_thinned_and_their_figures_are_of_all() -> None:
    samples = [float(number) for number in range(1000)]
    figures = summary(samples)
    assert (figures["median"], figures["p99"], figures["count"]) == (499.5, 990.0, 1000)
    assert len(figures["raw"]) <= RAW_SAMPLES
    assert ratios([2.0, 6.0, 4.0], [1.0, 2.0, 4.0]) == {"median": 2.0, "least": 1.0, "most": 3.0}


def test_another_one_comes_first_in_each_turn() -> None:
    turns = ["".join(in_turn("abc", turn)) for turn in range(4)]
    assert turns == ["abc", "bca", "cab", "abc"]


def test_bursts_share_prefixes_and_nothing_else() -> None:
    scenario = Scenario("s", 2, 30, 10, 1, 4)
    first, second, third, _ = scenario.prompts(random.Random(0), 0)
    assert first[:30] == third[:30] != second[:30]
    assert first[30:] != third[30:]
    assert all(len(prompt) == 40 for prompt in (first, second, third))
    assert len({one.name for one in SCENARIOS}) == len(SCENARIOS)


@pytest.mark.parametrize("page_size", [1, 16])
def test_requests_hit_what_earlier_ones_left(page_size: int) -> None:
    prompt = list(range(64))
    with engine_context():
        tree = build_tree("kvflow", page_size, 256, 256)
        tree.serve(prompt, [1, 2, 3])
        found = tree.match(array("q", [*prompt, 9, 9]))
        assert found.device_prefix_len == 64
        for number in range(10):
            tree.serve([number * 100 + t for t in range(64)], [1])
        assert tree.match(array("q", prompt)).device_prefix_len < 64
        tree.cache.sanity_check()
