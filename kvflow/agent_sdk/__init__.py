"""KVFlow's SDK: describe a workflow, and its agents' requests and steps are known to the engine.

Needs only the base install. Importing it imports neither ``openai`` nor any server part.
"""

from kvflow.agent_sdk.client import AsyncKVFlowClient, KVFlowClient
from kvflow.agent_sdk.declaration import choice, edge
from kvflow.agent_sdk.run import WorkflowRun
from kvflow.agent_sdk.step import Step, current_step, request_metadata
from kvflow.agent_sdk.workflow import Workflow
from kvflow.graph import Agent, Edge

__all__ = [
    "Agent",
    "AsyncKVFlowClient",
    "Edge",
    "KVFlowClient",
    "Step",
    "Workflow",
    "WorkflowRun",
    "choice",
    "current_step",
    "edge",
    "request_metadata",
]
