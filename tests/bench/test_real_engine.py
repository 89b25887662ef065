"""A whole benchmark on real engines: tiny, but with nothing left out."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path

import pytest

pytest.importorskip("matplotlib")
pytest.importorskip("fastapi")
pytest.importorskip("typer")

from kvflow.cli import bench as command

pytestmark = [
    pytest.mark.engine,
    pytest.mark.skipif(find_spec("sglang") is None, reason="needs SGLang: run `make install`"),
]

# Three of the four prompts fit: LRU finds nothing of a cycle, and KVFlow what it keeps.
SCENARIO = """
name = "tiny-ring"
[prompts]
fixed_tokens = 96
dynamic_tokens = 16
output_tokens = 2
[agents]
agents = 4
rounds = 3
[cache]
device_tokens = 400
"""


@pytest.mark.timeout(600)
def test_kvflow_hits_where_lru_does_not_and_answers_are_the_same(tmp_path: Path) -> None:
    scenario = tmp_path / "tiny.toml"
    scenario.write_text(SCENARIO)
    figures, page = tmp_path / "figures.json", tmp_path / "report.html"
    command.bench(
        str(scenario),
        arms="lru,kvflow",
        repeats=1,
        device="cpu",
        json_file=str(figures),
        html_file=str(page),
    )
    content = json.loads(figures.read_text())
    lru, kvflow = content["arms"]
    assert content["outputs_identical"] is True
    assert lru["summary"]["hit_rate"] == 0
    assert kvflow["summary"]["hit_rate_by_tier"]["device"] > 0.25
    assert kvflow["summary"]["hit_rate"] <= kvflow["summary"]["bound_hit_rate"]
    assert kvflow["summary"]["prefetch"]["predictions_hit"] == 8
    assert kvflow["summary"]["refusals"] == 0
    assert lru["settings"]["actual_device_tokens"] == 400
    for arm in content["arms"]:
        (only,) = arm["repeats"]
        assert len(only["calls"]) == 12
        assert [row["counted"] for row in only["calls"]] == [False] * 4 + [True] * 8
        assert all(row["prompt_tokens"] == 112 for row in only["calls"])
        assert all(row["output_tokens"] == 2 for row in only["calls"])
    assert "tiny-ring" in page.read_text()
