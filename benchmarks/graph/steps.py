"""How fast steps-to-execution follow the events of workflows.

Two figures, for each of several graphs:

* recompute: one pass over the graph of a workflow that an event has touched, timed one by one over
  the states of a walk through the graph;
* updates: with all workflows live, an event of a random one, its new steps, and the minimum over
  workflows brought up to date. One process, one core.

Run ``python -m benchmarks.graph.steps`` on an idle machine; ``cpu_s`` next to ``wall_s`` shows
whether it was idle.
"""

from __future__ import annotations

import argparse
import gc
import random
import resource
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.environment import write_result
from benchmarks.graph.shapes import SHAPES, WalkEvent, build, walk
from kvflow.graph import AgentStepGraph, EventOutcome, StepsIndex, WorkflowState
from kvflow.graph.steps import compute_steps

__all__ = ["main", "measure_recompute", "measure_updates"]

_RESULT = Path(__file__).parents[1] / "results" / "graph_steps.json"
_TARGET_RECOMPUTE_MEDIAN_US = 30
_TARGET_UPDATES_PER_S = 30_000
_WALK_EVENTS = 400


def measure_recompute(graph: AgentStepGraph, samples: int, rng: random.Random) -> dict[str, float]:
    """Time ``compute_steps`` over the states of walks."""
    times_ns: list[int] = []
    while len(times_ns) < samples:
        state = WorkflowState(graph)
        for event in walk(graph, _WALK_EVENTS, rng):
            _apply(state, event)
            marking, running = state._marking, state._runs.by_agent
            begin = time.perf_counter_ns()
            compute_steps(marking, running)
            times_ns.append(time.perf_counter_ns() - begin)
    percentiles = statistics.quantiles(times_ns, n=100)
    return {
        "samples": len(times_ns),
        "median_us": percentiles[49] / 1e3,
        "p95_us": percentiles[94] / 1e3,
        "p99_us": percentiles[98] / 1e3,
        "mean_us": statistics.fmean(times_ns) / 1e3,
    }


@dataclass
class _Live:
    """A live workflow that stands at some place of a walk."""

    client_id: str
    workflow_id: str
    state: WorkflowState
    events: list[WalkEvent]
    place: int


@dataclass(frozen=True, slots=True)
class _Update:
    report: Callable[[str, str | None], EventOutcome]
    agent_id: str
    step_id: str | None
    client_id: str
    workflow_id: str
    state: WorkflowState


def measure_updates(
    graph: AgentStepGraph,
    *,
    workflows: int,
    clients: int,
    step_ids: bool,
    updates: int,
    repeats: int,
    rng: random.Random,
) -> dict[str, object]:
    """Time events on live workflows that stand at random places of random walks."""
    walks = [walk(graph, _WALK_EVENTS, rng) for _ in range(20)]
    gc.collect()
    memory_before = _resident_bytes()
    index = StepsIndex()
    live = [
        _Live(
            client_id=f"client-{number % clients}",
            workflow_id=f"workflow-{number}",
            state=WorkflowState(graph),
            events=rng.choice(walks),
            place=rng.randrange(_WALK_EVENTS // 2),
        )
        for number in range(workflows)
    ]
    for workflow in live:
        for event in workflow.events[: workflow.place]:
            _apply(workflow.state, event, step_ids)
        index.update_state(workflow.client_id, workflow.workflow_id, workflow.state)
    gc.collect()
    bytes_per_workflow = (_resident_bytes() - memory_before) / workflows
    wall_s, cpu_s = [], []
    for _ in range(repeats):
        plan = _plan(live, updates, step_ids, rng)
        gc.collect()
        cpu_begin, wall_begin = time.process_time(), time.perf_counter()
        for update in plan:
            update.report(update.agent_id, update.step_id)
            index.update_state(update.client_id, update.workflow_id, update.state)
        wall_s.append(time.perf_counter() - wall_begin)
        cpu_s.append(time.process_time() - cpu_begin)
    return {
        "workflows": workflows,
        "clients": clients,
        "step_ids": step_ids,
        "updates": updates,
        "wall_s": wall_s,
        "cpu_s": cpu_s,
        "updates_per_s": [updates / seconds for seconds in wall_s],
        "median_updates_per_s": updates / statistics.median(wall_s),
        "resident_bytes_per_workflow": round(bytes_per_workflow),
    }


def _plan(live: Sequence[_Live], updates: int, step_ids: bool, rng: random.Random) -> list[_Update]:
    """Draw the next event of a random workflow, again and again. Does not apply them.

    Strings are made anew, as they are when they come over the network.
    """
    plan: list[_Update] = []
    while len(plan) < updates:
        workflow = rng.choice(live)
        if workflow.place == len(workflow.events):
            continue
        event = workflow.events[workflow.place]
        workflow.place += 1
        state = workflow.state
        plan.append(
            _Update(
                report=state.start if event.is_start else state.finish,
                agent_id=_anew(event.agent_id),
                step_id=str(event.run) if step_ids else None,
                client_id=_anew(workflow.client_id),
                workflow_id=_anew(workflow.workflow_id),
                state=state,
            )
        )
    return plan


def _anew(text: str) -> str:
    return text.encode().decode()


def _apply(state: WorkflowState, event: WalkEvent, step_ids: bool = True) -> None:
    report = state.start if event.is_start else state.finish
    report(event.agent_id, str(event.run) if step_ids else None)


def _resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * resource.getpagesize()


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--agents", type=int, default=50, help="per workflow")
    parser.add_argument("--workflows", type=int, default=20_000, help="live at a time")
    parser.add_argument("--samples", type=int, default=20_000, help="recomputes per graph")
    parser.add_argument("--updates", type=int, default=300_000, help="per repeat")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=_RESULT)
    options = parser.parse_args(arguments)

    graphs = {shape: build(shape, options.agents, options.seed) for shape in SHAPES}
    recompute = {}
    for shape, graph in graphs.items():
        figures = measure_recompute(graph, options.samples, random.Random(options.seed))
        recompute[shape] = {"edges": len(graph.edges), **figures}
        print(
            f"recompute {shape:8} {len(graph.edges):5} edges   "
            f"median {figures['median_us']:6.1f} us   p99 {figures['p99_us']:6.1f} us"
        )
    runs = []
    many_clients = max(1, options.workflows // 10)
    # Only graphs of ordinary density: with ten edges per agent the walks leave marks everywhere.
    variants = [(shape, 1, False) for shape in ("ring", "fan", "random")]
    variants += [("ring", 1, True), ("ring", many_clients, True)]
    for shape, clients, step_ids in variants:
        run = measure_updates(
            graphs[shape],
            workflows=options.workflows,
            clients=clients,
            step_ids=step_ids,
            updates=options.updates,
            repeats=options.repeats,
            rng=random.Random(options.seed),
        )
        runs.append({"shape": shape, **run})
        print(
            f"updates   {shape:8} {clients:5} clients{' step_ids' if step_ids else '':9}   "
            f"{run['median_updates_per_s']:8.0f}/s   "
            f"{run['resident_bytes_per_workflow']} bytes a workflow"
        )
    write_result(
        options.output,
        {
            "settings": {key: value for key, value in vars(options).items() if key != "output"},
            "targets": {
                "recompute_median_us": _TARGET_RECOMPUTE_MEDIAN_US,
                "updates_per_s": _TARGET_UPDATES_PER_S,
            },
            "recompute": recompute,
            "updates": runs,
        },
    )


if __name__ == "__main__":
    main()
