import json
import random
from pathlib import Path

import pytest

from benchmarks.graph import steps
from benchmarks.graph.shapes import SHAPES, build, walk
from kvflow.graph import WorkflowState


@pytest.mark.parametrize("shape", SHAPES)
def test_a_walk_follows_the_graph(shape: str) -> None:
    graph = build(shape, agents=50, seed=1)
    assert len(graph.agents) == 50
    state = WorkflowState(graph)
    for event in walk(graph, 200, random.Random(1)):
        report = state.start if event.is_start else state.finish
        assert not report(event.agent_id, str(event.run)).duplicate
    assert state.version == 200
    assert state.mispredictions <= 10


def test_the_benchmark_writes_its_figures_and_what_they_were_measured_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(steps, "_WALK_EVENTS", 200)
    # Beside all that other tests have loaded it takes a second each time.
    monkeypatch.setattr(steps.gc, "collect", lambda: 0)
    result = tmp_path / "new" / "graph_steps.json"
    small = "--agents 20 --workflows 30 --samples 100 --updates 200 --repeats 2 --seed 3"
    steps.main([*small.split(), "--output", str(result)])
    written = json.loads(result.read_text(encoding="utf-8"))
    assert set(written["recompute"]) == set(SHAPES)
    assert all(figures["median_us"] > 0 for figures in written["recompute"].values())
    assert {run["shape"] for run in written["updates"]} == {"ring", "fan", "random"}
    assert all(run["median_updates_per_s"] > 0 for run in written["updates"])
    assert all(len(run["wall_s"]) == len(run["cpu_s"]) == 2 for run in written["updates"])
    assert written["settings"]["seed"] == 3
    assert written["environment"]["cpu_model"]
    assert written["environment"]["packages"]["kvflow"]
    assert len(capsys.readouterr().out.splitlines()) == len(SHAPES) + len(written["updates"])
