"""The workload of a scenario that replays a trace."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

from kvflow.graph import AgentStepGraph
from kvflow.workload.base import Workload, WorkloadWorkflow
from kvflow.workload.declared import declare
from kvflow.workload.scenario import Scenario
from kvflow.workload.trace import read_trace

__all__ = ["replayed"]


def replayed(scenario: Scenario, path: Path) -> Workload:
    """Return the trace's workload, with the graphs that the scenario wants declared.

    Raises:
        InvalidInputError: as ``read_trace``.
    """
    trace = read_trace(path)
    kind = scenario.hints.graph

    @lru_cache(256)
    def declared(graph: AgentStepGraph) -> AgentStepGraph | None:
        return declare(graph, kind, random.Random(f"{scenario.seed}/declared"))

    def workflows() -> Iterator[WorkloadWorkflow]:
        for workflow in trace.workflows():
            if workflow.graph is None or kind == "right":
                yield workflow
            else:
                yield replace(workflow, graph=declared(workflow.graph))

    return replace(trace, name=scenario.name, workflows=workflows)
