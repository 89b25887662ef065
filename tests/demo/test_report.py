from __future__ import annotations

import io
import json
from dataclasses import replace

import pytest

from benchmarks import tables
from kvflow.demo.arms import ARMS
from kvflow.demo.report import render, sentence, table_rows, tier_rows, to_json
from kvflow.demo.summary import DemoResult
from tests.demo.conftest import METRICS, make_answer, make_arm, make_result

FOUR = ("stock", "kvflow", "stock+hicache", "kvflow+hicache")


@pytest.fixture
def result() -> DemoResult:
    return make_result(
        *(
            make_arm(
                name,
                warm_hits=78 if "kvflow" in name else 0,
                ttft_s=0.5 if "kvflow" in name else 1.5,
                wall_s=40 if "kvflow" in name else 60,
            )
            for name in FOUR
        )
    )


def test_json_has_what_was_promised(result: DemoResult) -> None:
    document = json.loads(json.dumps(to_json(result)))
    assert {"arms", "outputs_identical", "versions", "settings", "hardware"} <= set(document)
    assert [arm["name"] for arm in document["arms"]] == list(FOUR)
    for arm in document["arms"]:
        assert {"name", "hit_rate", "ttft_p50_s", "ttft_p95_s", "wall_s"} <= set(arm)
        assert arm["setting"] in document["settings"]["caches"]
        assert len(arm["calls"]) == 30
        assert {
            "round",
            "agent_id",
            "prompt_tokens",
            "cached_tokens",
            "ttft_s",
            "total_s",
            "output_sha256",
        } <= set(arm["calls"][0])
    assert document["outputs_identical"] is True
    assert document["versions"]["sglang"] == "0.5.23"
    assert document["settings"]["seed"] == 0
    assert document["settings"]["caches"]["small-host"]["host_tokens"] == 4624


def test_json_figures_are_those_of_the_arms(result: DemoResult) -> None:
    kvflow = to_json(result)["arms"][1]
    assert kvflow["hit_rate"] == pytest.approx(0.78)
    assert kvflow["optimal_hit_rate"] == pytest.approx(0.8)
    assert kvflow["ttft_p50_s"] == 0.5
    assert kvflow["wall_s"] == 40
    assert [one["hit_rate"] for one in kvflow["rounds"]] == pytest.approx([0, 0.78, 0.78])
    assert kvflow["calls"][10]["optimal_cached_tokens"] == 80


def test_json_without_a_known_optimum(result: DemoResult) -> None:
    arm = replace(result.arms[0], optimal_hits=None)
    written = to_json(replace(result, arms=[arm]))["arms"][0]
    assert written["optimal_hit_rate"] is None
    assert written["calls"][0]["optimal_cached_tokens"] is None


def test_the_table_has_a_group_per_setting(result: DemoResult) -> None:
    (first, first_rows), (second, second_rows) = table_rows(result)
    assert (first.name, second.name) == ("device-only", "small-host")
    assert first_rows[1] == ("KVFlow", "0.780", "0.800", "0.50 s", "0.50 s", "40.0 s")
    assert [row[0] for row in second_rows] == [
        "stock SGLang with HiCache",
        "KVFlow with HiCache",
    ]


def test_the_second_table_has_arms_with_a_host_pool_and_counts_of_those_that_prefetch() -> None:
    busy = {**METRICS, 'kvflow_prefetched_tokens_total{copy="load"}': 12_345.0}
    names = ("kvflow", "stock+hicache", "kvflow+hicache", "kvflow+hicache-noprefetch")
    arms = [
        replace(make_arm(name, warm_hits=78 if "kvflow" in name else 0), kvflow_metrics=busy)
        for name in names
    ]
    assert tier_rows(make_result(*arms)) == [
        ("stock SGLang with HiCache", "0.0%", "", "", "", ""),
        ("KVFlow with HiCache", "100.0%", "12,345", "700", "50", "30"),
        ("KVFlow with HiCache, no prefetch", "100.0%", "", "", "", ""),
    ]


def test_json_has_what_became_of_prefetch() -> None:
    arm = replace(make_arm("kvflow+hicache", warm_hits=78), kvflow_metrics=METRICS)
    other = make_arm("kvflow+hicache-noprefetch")
    written, without = to_json(make_result(arm, other))["arms"]
    assert written["prefetch"] is True
    assert (written["served_from_device"], written["device_share"]) == (1.0, 1.0)
    assert written["prefetched_tokens"] == {"loaded": 900, "used": 700, "wasted": 50, "late": 30}
    assert without["prefetch"] is False
    assert (without["served_from_device"], without["device_share"]) == (0.0, None)
    assert without["prefetched_tokens"] is None


def test_the_results_table_reads_the_json_and_one_without_figures_of_prefetch() -> None:
    document = to_json(make_result(make_arm("kvflow"), make_arm("kvflow+hicache", warm_hits=78)))
    single, tiered = tables.demo(document).splitlines()[2:4]
    assert single.split("|")[5].strip() == ""
    assert tiered.split("|")[5].strip() == "100%"
    for arm in document["arms"]:
        del arm["served_from_device"]
    assert tables.demo(document).splitlines()[3] == tiered.replace("100%", "")


def test_the_sentence_says_ratios_and_optimum_and_that_outputs_agree(result: DemoResult) -> None:
    text = sentence(result)
    assert text.startswith("KVFlow found 78.0% of the prompt tokens in cache")
    assert "(best any policy could: 80.0%)" in text
    assert "the first token 3.00 times as fast (p95: 3.00 times)" in text
    assert "the whole run 1.50 times as fast" in text
    assert text.endswith("all 4 arms gave identical outputs.")


def test_the_sentence_does_not_hide_a_slowdown() -> None:
    slower = make_result(make_arm("stock", wall_s=40), make_arm("kvflow", wall_s=60))
    assert "the whole run 0.67 times as fast" in sentence(slower)


def test_the_sentence_does_not_hide_other_outputs(result: DemoResult) -> None:
    last = result.arms[-1]
    records = [*last.records[:-1], replace(last.records[-1], answer=make_answer(output_ids=()))]
    other = replace(result, arms=[*result.arms[:-1], replace(last, records=records)])
    document = to_json(other)
    assert document["outputs_identical"] is False
    assert document["differences"] == [
        {"round": 3, "agent_id": "release_manager", "arms": ["stock", "kvflow+hicache"]}
    ]
    text = sentence(other)
    assert "outputs are NOT identical (1 differ, first the release_manager's in round 3" in text


def test_what_is_printed_fits_a_terminal() -> None:
    console = pytest.importorskip("rich.console")
    written = io.StringIO()
    arms = (make_arm(name, warm_hits=78, wall_s=100.0) for name in ARMS)
    busy = dict.fromkeys(METRICS, 12_345.0)
    every = make_result(*(replace(arm, kvflow_metrics=busy) for arm in arms))
    render(every, console.Console(file=written, width=80))
    lines = [line.rstrip() for line in written.getvalue().splitlines()]
    (head,) = [line for line in lines if line.startswith("   ") and "possible" in line]
    table = lines[lines.index(head) : lines.index(head) + 13]
    assert [line[:38].strip() for line in table[2:]] == [
        "device-only:",
        "stock SGLang",
        "KVFlow",
        "small-host:",
        "stock SGLang with HiCache",
        "KVFlow with HiCache",
        "KVFlow with HiCache, no prefetch",
        "large-host:",
        "stock SGLang with large HiCache",
        "KVFlow with large HiCache",
        "KVFlow with large HiCache, no prefetch",
    ]
    assert table[3][38:].split() == ["0.780", "0.800", "1.00", "s", "1.00", "s", "100.0", "s"]
    (second,) = [line for line in lines if line.startswith("   ") and "wasted" in line]
    tiers = lines[lines.index(second) : lines.index(second) + 9]
    assert tiers[4][38:].split() == ["100.0%", *["12,345"] * 4]
    assert max(map(len, [*table, *tiers])) <= 80
    assert "…" not in written.getvalue()


def test_the_notes_say_what_a_mirroring_host_can_reach() -> None:
    console = pytest.importorskip("rich.console")
    written = io.StringIO()
    arm = replace(make_arm("kvflow+hicache"), mirrored_hits=[0] * 10 + [50] * 20)
    render(make_result(arm), console.Console(file=written, width=80))
    assert "2,048 tokens on the device, 4,624 on the host" in written.getvalue()
    assert "of the host's size alone is 0.500." in written.getvalue()
