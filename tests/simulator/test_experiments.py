"""The experiments' arithmetic and tables, on made results; none of their figures."""

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.simulation import map as speedup_map
from benchmarks.simulation import paper, policies, tables
from benchmarks.simulation.runs import Case, ratio, run_all, with_link
from benchmarks.simulation.scenarios import changed, policy_scenarios
from kvflow.simulator.presets import cost_model, device_tokens
from kvflow.workload import build_workload, parse_scenario

ENVIRONMENT = {
    "cpu_model": "a CPU",
    "cpu_cores": 2,
    "python": "CPython 3.11",
    "packages": {"sglang": "0.5.23"},
}


def made_row(policy: str, calls_per_s: float, **more: Any) -> dict[str, Any]:
    return {
        **{"workload": "ring", "tiers": "device", "hints": "right", "policy": policy},
        **{"calls_per_s": calls_per_s, "share_of_bound": 0.98, "hit_rate": 0.5},
        **{"bound_hit_tokens": 60, "prompt_tokens": 100},
        **more,
    }


def test_throughput_is_over_lru_on_the_same_tiers() -> None:
    host = {"tiers": "device+host"}
    rows = [
        *(made_row("lru", 2.0), made_row("kvflow", 3.0)),
        *(made_row("hicache-lru", 4.0, **host), made_row("kvflow", 3.0, **host)),
    ]
    found = policies.with_ratios(rows)
    assert [row["throughput_over_lru"] for row in found] == [1.0, 1.5, 1.0, 0.75]
    assert ratio(rows[:1], "kvflow", "lru") is None
    assert [row["over_clairvoyant"] for row in found] == [None] * 4
    known = [made_row("kvflow", 3.0, hit_rate=0.6), made_row("clairvoyant", 3.0, hit_rate=0.8)]
    assert policies.with_ratios(known)[0]["over_clairvoyant"] == pytest.approx(0.75)
    assert policies.with_ratios(known)[0]["throughput_over_lru"] is None


def test_a_goal_that_is_missed_says_where() -> None:
    rows = policies.with_ratios(
        [
            *(made_row("lru", 2.0), made_row("kvflow", 3.0, share_of_bound=0.96)),
            made_row("lru", 2.0, hints="wrong-0.2"),
            made_row("kvflow", 2.0, hints="wrong-0.2", share_of_bound=0.91),
            *(made_row("clairvoyant", 3.0), made_row("clairvoyant", 2.0, hints="wrong-0.2")),
            *(made_row("lru", 2.0, hints="reversed"), made_row("kvflow", 1.9, hints="reversed")),
            *(made_row("lru", 2.0, hints="shuffled"), made_row("kvflow", 2.1, hints="shuffled")),
        ]
    )
    right, wrong, known, known_wrong, adversarial = verdicts = policies.judged(rows)
    assert [verdict["asked"] for verdict in verdicts] == [True, True, False, False, True]
    assert (known["met"], known_wrong["worst"]) == (1, 1.0)
    assert (right["met"], right["of"], right["worst"]) == (0, 1, 0.96)
    assert right["missed"] == [
        {"workload": "ring", "tiers": "device", "hints": "right", "figure": 0.96}
    ]
    assert (wrong["met"], wrong["missed"]) == (1, [])
    assert (adversarial["met"], adversarial["of"]) == (1, 2)
    text = tables.policy_goals({"goals": [right, wrong, adversarial]})
    assert "| 0 of 1 | 96.0% | ring, device, right: 96.0% |" in text
    assert "| 1 of 1 | 91.0% | nowhere |" in text
    assert "ring, device, reversed: 95.0%" in text


@pytest.mark.parametrize("quick", [False, True])
def test_the_workloads_fill_the_device_and_count_something(quick: bool) -> None:
    device = device_tokens("h100", "llama-3.1-8b")
    for name, scenario in policy_scenarios(0, quick=quick).items():
        workload = build_workload(scenario)
        calls = [call for workflow in workload.workflows() for call in workflow.calls]
        assert len(calls) > workload.warm_up_calls, name
        fixed = {call.prompt[: call.fixed_pieces] for call in calls}
        if not quick and name != "chat":
            shared = scenario.prompts.shared_tokens
            total = sum(sum(piece.tokens for piece in prefix) - shared for prefix in fixed)
            assert total > device, name
            assert len(calls) >= 600, name


def test_every_published_figure_has_setups() -> None:
    names = [setup.name for setup in paper.SETUPS]
    assert len(set(names)) == len(names)
    for one in paper.PUBLISHED:
        assert any(one.covers(setup) for setup in paper.SETUPS), one
    grid = [one for one in paper.PUBLISHED if one.what == "mean, fixed 8192"]
    assert [sum(one.covers(setup) for setup in paper.SETUPS) for one in grid] == [8, 8]


def test_published_and_simulated_stand_side_by_side() -> None:
    setups = [s for s in paper.SETUPS if s.kind == "single" and s.gpu == "a10g"]
    rows = [
        {"setup": setup.name, "link": "full", "policy": policy, "calls_per_s": rate}
        for setup in setups
        for policy, rate in (("lru", 1.0), ("hicache-lru", 2.0), ("kvflow", 3.0))
    ]
    rows[-1]["calls_per_s"] = 4.0
    found = paper.compared(rows, setups)
    by_name = {(one["what"], one["gpu"], one["over"]): one for one in found}
    exact = by_name["8192/32/32", "a10g", "hicache-lru"]
    assert exact["simulated"] == {"full": pytest.approx({"mean": 1.5, "least": 1.5, "most": 1.5})}
    mean = by_name["mean, fixed 8192", "a10g", "hicache-lru"]["simulated"]["full"]
    assert mean["mean"] == pytest.approx((1.5**7 * 2.0) ** (1 / 8))
    assert by_name["PEER", "h100", "lru"]["simulated"] == {}
    settings = {"agents": 10, "runs": 10, "links": {"full": None, "1 GB/s": 1e9}}
    text = tables.paper({"settings": settings, "compared": found})
    assert "| A10G, 8192/32/32: KVFlow over HiCache | 1.83 | 1.50 |  | v1 |" in text
    assert "| A10G, mean, fixed 8192: KVFlow over HiCache | 1.48 | 1.55 (1.50 to 2.00) |" in text


def made_map() -> dict[str, Any]:
    points = [
        {
            **{"bandwidth": name, "fixed_tokens": length, "agents": agents},
            "speedup": {"hicache-lru": 1 + agents / length, "lru": 1.5},
        }
        for name in ("slow", "fast")
        for length in (512, 4096)
        for agents in (4, 16)
    ]
    return {
        "settings": {
            **{"lengths": [512, 4096], "agents": [4, 16], "device_tokens": 37_000},
            "bandwidths": {"slow": 1e9, "fast": 5e10},
        },
        "points": points,
    }


def test_the_map_is_drawn_the_same_each_time(tmp_path: Path) -> None:
    paths = [tmp_path / "one.svg", tmp_path / "two.svg"]
    for path in paths:
        speedup_map.draw(made_map(), path)
    one, two = (path.read_bytes() for path in paths)
    assert one == two
    assert one.startswith(b"<?xml")


def test_the_map_has_a_point_for_each_place() -> None:
    rows = [
        {"bandwidth": "slow", "fixed_tokens": 512, "agents": 4, "policy": policy, "calls_per_s": r}
        for policy, r in (("lru", 1.0), ("hicache-lru", 2.0), ("kvflow", 3.0))
    ]
    (point,) = speedup_map.points(rows)
    assert point["speedup"] == {"hicache-lru": 1.5, "lru": 3.0}


def test_the_tables_of_policies_and_validation() -> None:
    host = {"tiers": "device+host"}
    rows = policies.with_ratios(
        [
            *(made_row("lru", 2.0), made_row("kvflow", 3.0, hit_rate=0.59)),
            *(made_row("hicache-lru", 4.0, **host), made_row("kvflow", 3.0, **host)),
        ]
    )
    text = tables.policies({"settings": {"gpu": "h100", "model": "m"}, "rows": rows})
    assert "| ring | 50.0% | 59.0% | 60.0% | 98.0% |  | 1.50 |" in text
    assert "| device+host: hit rate | hicache-lru | kvflow |" in text
    assert "not measured" in text
    side = {"hit_rate": 0.5, "wall_s": 40.0}
    row = {
        **{"scenario": "ring", "arm": "lru", "real": side},
        "simulated": {"hit_rate": 0.53, "wall_s": 42.0},
        **{"hit_rate_error_points": 3.0, "wall_error": 0.05, "drift": {"prefill": -0.1}},
        **{"hit_rate_met": False, "wall_met": True},
    }
    goals = {"points": 2.0, "wall": 0.15}
    text = tables.validation({"rows": [row], "goals": goals, "environment": ENVIRONMENT})
    assert "| ring, lru | 50.0% | 53.0% | +3.0 | 40.0 s | 42.0 s | +5.0% | -10% |" in text
    assert "Within 2 points: 0 of 1. Wall time within 15%: 1 of 1." in text


def test_the_table_of_the_simulators_own_speed() -> None:
    row = {
        **{"policy": "lru", "calls": 1_000_000, "wall_s": 160.4, "calls_per_s": 6234.4},
        **{"peak_rss_bytes_at_a_tenth": 80_400_000, "peak_rss_bytes": 81_000_000},
    }
    text = tables.speed({"rows": [row], "environment": ENVIRONMENT})
    assert "| lru | 1,000,000 | 160 s | 6,234 /s | 80 MB | 81 MB |" in text


def test_cases_run_to_rows_whatever_the_number_of_processes() -> None:
    scenario = parse_scenario(
        {
            "name": "small",
            "prompts": {"fixed_tokens": 512, "dynamic_tokens": 16, "output_tokens": 4},
            "agents": {"agents": 4, "rounds": 3},
            "cache": {"device_tokens": 1536, "host_tokens": 8192},
        }
    )
    costs = with_link(cost_model("a10g", "llama-3.1-8b"), 4e9)
    assert costs.load.tokens_per_s == pytest.approx(4e9 / 131_072)
    cases = [
        Case({"n": n}, changed(scenario, agents={"rounds": n}), costs, policy)
        for n in (2, 3)
        for policy in ("lru", "hicache-lru")
    ]
    rows = run_all(cases, jobs=2)
    assert rows == run_all(cases, jobs=1)
    assert [(row["n"], row["policy"], row["calls"]) for row in rows] == [
        *((2, "lru", 4), (2, "hicache-lru", 4)),
        *((3, "lru", 8), (3, "hicache-lru", 8)),
    ]
    assert rows[0]["hit_rate"] == 0 < rows[1]["hit_rate"]
    assert json.loads(json.dumps(rows)) == rows
