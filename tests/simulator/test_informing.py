"""What the simulated service makes of calls alone, and of times."""

from __future__ import annotations

from dataclasses import replace

import pytest

from kvflow.graph import Agent, AgentStepGraph, Edge
from kvflow.simulator import EngineModel, simulate
from kvflow.simulator.informing import InformedService
from tests.simulator.workloads import COSTS, ring, ring_graph, ring_workflow, sizes, workload

LEARNED = EngineModel(graphs="learned")


def test_from_calls_alone_a_ring_is_found_again_once_it_was_seen() -> None:
    given, cache = ring(10, 12), sizes(700)
    lru = simulate(given, cache, COSTS, "lru")
    declared = simulate(given, cache, COSTS, "kvflow")
    learned = simulate(given, cache, COSTS, "kvflow", engine=LEARNED)
    assert lru.hit_rate == 0
    assert declared.hit_rate > 0.5
    assert 0.7 * declared.hit_rate < learned.hit_rate <= declared.hit_rate
    assert learned.prediction_misses == 0


def test_workflows_learn_from_those_before_them() -> None:
    flows = [
        replace(ring_workflow(10, 1, name=f"w{n}"), workflow_id=f"w{n}", graph=None)
        for n in range(12)
    ]
    learned = simulate(workload(*flows), sizes(700), COSTS, "kvflow", engine=LEARNED)
    assert learned.prediction_hits > 60
    assert learned.hit_rate > 0.3


def test_without_declared_graphs_the_other_way_tells_nothing() -> None:
    """Negative control: what is gained comes from the calls."""
    flows = [
        replace(ring_workflow(10, 1, name=f"w{n}"), workflow_id=f"w{n}", graph=None)
        for n in range(12)
    ]
    plain = simulate(workload(*flows), sizes(700), COSTS, "kvflow")
    assert (plain.prediction_hits, plain.hit_rate) == (0, 0)


def test_an_order_by_time_finds_as_much_where_all_steps_take_as_long() -> None:
    given, cache = ring(10, 8), sizes(700)
    steps = simulate(given, cache, COSTS, "kvflow")
    by_time = simulate(given, cache, COSTS, "kvflow", engine=EngineModel(order="time"))
    assert by_time.hit_rate == pytest.approx(steps.hit_rate, abs=0.02)


def test_engines_are_told_times_on_the_simulated_clock() -> None:
    graph = ring_graph(2, 10)
    service = InformedService("declared", times=True)
    told = service.workflow(ring_workflow(2, 1, graph=graph))
    assert told is not None
    assert told.update(0.0).workflows[0].due_s is None
    told.started("a0", 100.0)
    told.finished("a0", 103.0)
    told.started("a1", 105.0)
    (update,) = told.update(106.0).workflows
    # a1 is expected to take the 3 s that a0 did, 2 of which are left, and 2 s lie between.
    assert update.due_s == {"a0": pytest.approx(110.0), "a1": 106.0}
    assert told.started("unknown", 107.0) is False


def test_engines_are_told_declared_probabilities_as_the_service_tells_them() -> None:
    graph = AgentStepGraph(
        [Agent("a0"), Agent("a1"), Agent("b")],
        [Edge("a0", "a1", "choice", 0.75), Edge("a0", "b", "choice", 0.25)],
        ["a0"],
    )
    told = InformedService("declared", times=False).workflow(ring_workflow(2, 1, graph=graph))
    assert told is not None
    choices = [told.update(0.0).workflows[0].choices]
    told.started("a0", 1.0)
    choices.append(told.update(1.0).workflows[0].choices)
    told.finished("a0", 2.0)
    told.started("a1", 3.0)
    choices.append(told.update(3.0).workflows[0].choices)
    assert choices == [None, {"a0": {"a1": 0.75, "b": 0.25}}, None]
