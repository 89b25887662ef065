"""A discrete-event model of the engine that runs KVFlow's own code."""

from kvflow.simulator.base import (
    POLICIES,
    EngineModel,
    Graphs,
    Order,
    PolicyName,
    SimulationResult,
    TierTokens,
    WritePolicy,
)
from kvflow.simulator.costs import CostModel
from kvflow.simulator.run import simulate

__all__ = [
    "POLICIES",
    "CostModel",
    "EngineModel",
    "Graphs",
    "Order",
    "PolicyName",
    "SimulationResult",
    "TierTokens",
    "WritePolicy",
    "simulate",
]
