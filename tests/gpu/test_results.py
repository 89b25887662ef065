"""Result files: whole or not there, and merged without losing what they say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.gpu.results import PLACES, ResultFolder, merged


def figures(wall_s: float) -> dict[str, Any]:
    spread = {"median": wall_s, "min": wall_s, "max": wall_s}
    return {"wall_s": spread, "ttft_p50_s": wall_s / 10, "ttft_p99_s": wall_s / 5}


def part(scenario: str, arms: dict[str, float], ratios: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "task": f"b/single/{scenario}/{'+'.join(arms)}",
        "piece": "b",
        "bench": "single",
        "model": "tiny",
        "note": "",
        "scenario": {"name": scenario},
        "arithmetic_floor": [{"load_s": 1}],
        "arms": [
            {
                "name": name,
                "summary": figures(wall_s),
                "repeats": [{"repeat": 1, "wall_s": wall_s, "calls": [{"ttft_s": 1}]}],
            }
            for name, wall_s in arms.items()
        ],
        "ratios": ratios,
    }


def test_parts_are_found_again(tmp_path: Path) -> None:
    folder = ResultFolder(tmp_path)
    assert folder.done() == set()
    folder.write_part("b/x/y/lru", {"piece": "b"})
    folder.write_part("a/as-is", {"piece": "a"})
    again = ResultFolder(tmp_path)
    assert again.done() == {"b/x/y/lru", "a/as-is"}
    assert [one["piece"] for one in again.parts()] == ["a", "b"]


def test_a_file_that_was_cut_off_is_not_there(tmp_path: Path) -> None:
    folder = ResultFolder(tmp_path)
    folder.write_part("a/as-is", {"piece": "a"})
    (tmp_path / "parts" / "a__naive.part").write_text('{"task": "a/na')
    assert folder.done() == {"a/as-is"}


def test_what_is_kept_for_the_next_run(tmp_path: Path) -> None:
    folder = ResultFolder(tmp_path)
    assert folder.kept("rates") is None
    folder.keep("rates", {"flops_per_s": 1.0})
    assert ResultFolder(tmp_path).kept("rates") == {"flops_per_s": 1.0}


def test_arms_of_several_groups_are_compared() -> None:
    side_by_side = {"arm": "kvflow", "to": "lru", "wall_s": {"median": 2.5}}
    result = merged(
        [
            part("s", {"kvflow": 2.0, "lru": 4.0}, [side_by_side]),
            part("s", {"limit": 1.0}, []),
            part("t", {"kvflow": 3.0}, []),
        ]
    )
    first, second = result["pieces"]["b"]
    assert list(first["arms"]) == ["kvflow", "lru", "limit"]
    assert second["ratios"] == []
    ratios = {(ratio["arm"], ratio["to"]): ratio for ratio in first["ratios"]}
    assert ratios["kvflow", "lru"] == {**side_by_side, "interleaved": True}
    assert ratios["kvflow", "limit"]["wall_s"] == 0.5
    assert ratios["limit", "lru"]["wall_s"] == 4
    assert not ratios["kvflow", "limit"]["interleaved"]
    assert ("limit", "limit") not in ratios


def test_single_calls_stay_in_the_parts() -> None:
    given = part("s", {"kvflow": 2.0}, [])
    (scenario,) = merged([given])["pieces"]["b"]
    assert scenario["arms"]["kvflow"]["repeats"] == [{"repeat": 1, "wall_s": 2.0}]
    assert given["arms"][0]["repeats"][0]["calls"]
    json.dumps(scenario)


@pytest.mark.parametrize(("missing", "complete"), [(None, True), ("stale", False)])
def test_correctness_is_complete_when_every_place_was_seen(
    missing: str | None, complete: bool
) -> None:
    places = sorted(PLACES - {missing})
    parts = [
        {"piece": "a", "verdict": {"holds": True, "places": {key: {} for key in half}}}
        for half in (places[:3], places[3:])
    ]
    found = merged(parts)["pieces"]["a"]
    assert (found["complete"], found["holds"]) == (complete, True)
    parts[0]["verdict"]["holds"] = False  # type: ignore[index]
    assert not merged(parts)["pieces"]["a"]["holds"]
