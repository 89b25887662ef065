"""Agent Step Graph: which agent can run next, and in how many steps each other one can."""

from kvflow.graph.base import INFINITE_STEPS, Agent, Edge, EdgeKind, EventOutcome, Join
from kvflow.graph.index import StepsIndex
from kvflow.graph.pool import GraphPool
from kvflow.graph.state import WorkflowState
from kvflow.graph.step_graph import AgentStepGraph

__all__ = [
    "INFINITE_STEPS",
    "Agent",
    "AgentStepGraph",
    "Edge",
    "EdgeKind",
    "EventOutcome",
    "GraphPool",
    "Join",
    "StepsIndex",
    "WorkflowState",
]
