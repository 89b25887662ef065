"""Workloads of multi-agent workflows, for the benchmark and the simulator alike."""

from kvflow.workload.base import Piece, Workload, WorkloadCall, WorkloadWorkflow
from kvflow.workload.build import build_workload
from kvflow.workload.scenario import CacheSizes, Scenario, load_scenario, parse_scenario

__all__ = [
    "CacheSizes",
    "Piece",
    "Scenario",
    "Workload",
    "WorkloadCall",
    "WorkloadWorkflow",
    "build_workload",
    "load_scenario",
    "parse_scenario",
]
