from __future__ import annotations

import json

from kvflow.bench.rows import Run
from tests.bench.made_up import result, row


def test_everything_is_written_down() -> None:
    content = json.loads(json.dumps(result().to_json()))
    assert content["format"] == 1
    assert content["scenario"]["name"] == "made-up"
    assert content["arithmetic_floor"] is None
    assert content["outputs_identical"] is True
    assert [arm["name"] for arm in content["arms"]] == ["limit", "lru", "kvflow"]
    limit, lru, kvflow = content["arms"]
    assert limit["settings"]["device_tokens"] == 8000
    assert lru["settings"]["host_tokens"] == 0
    assert kvflow["settings"]["host_tokens"] == 3200
    assert kvflow["repeats"][1]["repeat"] == 2
    assert kvflow["repeats"][0]["bound_hit_tokens"] == 130
    assert kvflow["summary"]["prefetch"]["loaded_tokens"] == 900
    assert lru["summary"]["prefetch"] is None
    assert {(one["arm"], one["to"]) for one in content["ratios"]} == {
        ("limit", "lru"),
        ("lru", "limit"),
        ("kvflow", "limit"),
        ("kvflow", "lru"),
    }


def test_rows_have_all_that_is_known_of_a_call() -> None:
    written = result().to_json()["arms"][0]["repeats"][0]["calls"][2]
    assert set(written) == {
        *("workflow_id", "client_id", "agent_id", "position", "repeat", "counted"),
        *("started_s", "ttft_s", "total_s", "output_tokens", "output_hash"),
        *("prompt_tokens", "cached_tokens", "device_tokens", "host_tokens", "storage_tokens"),
        "fixed_tokens",
    }


def test_differences_are_counted_and_the_first_are_named() -> None:
    made = result(("lru", "kvflow"), repeats=1)
    rows = [row(number, output_hash="else") for number in range(30)]
    other = Run(1, rows, 2.0)
    object.__setattr__(made.arms[1], "runs", [other])
    content = made.to_json()
    assert content["outputs_identical"] is False
    assert content["differences"]["count"] == 30
    assert len(content["differences"]["first"]) == 20
