"""Small workloads, made by hand."""

from __future__ import annotations

from collections.abc import Sequence

from kvflow.graph import Agent, AgentStepGraph, Edge
from kvflow.prefetch import Link
from kvflow.simulator import CostModel
from kvflow.workload import CacheSizes, Piece, Workload, WorkloadCall, WorkloadWorkflow

COSTS = CostModel(
    name="by hand",
    kv_bytes_per_token=1000,
    step_overhead_s=1e-3,
    prefill_s_per_token=1e-4,
    prefill_s_per_token_pair=1e-9,
    decode_step_s=5e-3,
    decode_s_per_sequence=1e-4,
    decode_s_per_context_token=1e-8,
    load=Link(2e5, 1e-4),
    write=Link(2e5, 1e-4),
    fetch=Link(2e4, 1e-3),
)


def sizes(device: int, host: int = 0, *, page: int = 1, storage: bool = False) -> CacheSizes:
    return CacheSizes(device_tokens=device, host_tokens=host, page_tokens=page, storage=storage)


def ring_graph(agents: int, fixed: int) -> AgentStepGraph:
    names = [f"a{n}" for n in range(agents)]
    return AgentStepGraph(
        [Agent(name, join="any", fixed_prefix_tokens=fixed) for name in names],
        [Edge(name, names[(n + 1) % agents]) for n, name in enumerate(names)],
        [names[0]],
    )


def reversed_graph(agents: int, fixed: int) -> AgentStepGraph:
    graph = ring_graph(agents, fixed)
    edges = [Edge(edge.target, edge.source) for edge in graph.edges]
    return AgentStepGraph(graph.agents, edges, graph.entry)


def ring_workflow(
    agents: int,
    rounds: int,
    *,
    name: str = "w",
    fixed: int = 100,
    dynamic: int = 4,
    output: int = 3,
    graph: AgentStepGraph | None = None,
    pause_s: float = 0.0,
) -> WorkloadWorkflow:
    """Agents in a ring, each with a prefix of its own; dynamic parts are never read again."""
    calls = []
    for number in range(agents * rounds):
        agent = number % agents
        calls.append(
            WorkloadCall(
                agent_id=f"a{agent}",
                after=(number - 1,) if number else (),
                pause_s=pause_s if number else 0.0,
                prompt=(
                    Piece(f"fixed-{agent}", fixed),
                    Piece(f"{name}-dynamic-{number}", dynamic),
                ),
                fixed_pieces=1,
                answer=Piece(f"{name}-answer-{number}", output),
            )
        )
    return WorkloadWorkflow("c", name, None, graph, tuple(calls))


def workload(
    *workflows: WorkloadWorkflow, concurrency: int | None = 1, warm_up_calls: int = 0
) -> Workload:
    kept: Sequence[WorkloadWorkflow] = workflows
    return Workload("by hand", concurrency, lambda: iter(kept), warm_up_calls)


def ring(
    agents: int,
    rounds: int,
    *,
    warm_up_rounds: int = 1,
    graph: AgentStepGraph | None = None,
    fixed: int = 100,
) -> Workload:
    """One workflow with the right graph unless another is given."""
    declared = ring_graph(agents, fixed) if graph is None else graph
    workflow = ring_workflow(agents, rounds, graph=declared, fixed=fixed)
    return workload(workflow, warm_up_calls=agents * warm_up_rounds)
