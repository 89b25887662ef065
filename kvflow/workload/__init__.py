"""Workloads of multi-agent workflows, for the benchmark and the simulator alike."""

from kvflow.workload.base import Piece, Workload, WorkloadCall, WorkloadWorkflow
from kvflow.workload.build import build_workload
from kvflow.workload.scenario import (
    CacheSizes,
    Scenario,
    find_scenario,
    load_scenario,
    parse_scenario,
    shipped_scenarios,
)
from kvflow.workload.trace import read_trace, write_trace

__all__ = [
    "CacheSizes",
    "Piece",
    "Scenario",
    "Workload",
    "WorkloadCall",
    "WorkloadWorkflow",
    "build_workload",
    "find_scenario",
    "load_scenario",
    "parse_scenario",
    "read_trace",
    "shipped_scenarios",
    "write_trace",
]
