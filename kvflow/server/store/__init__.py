"""Where the service keeps its workflows."""

from kvflow.server.store.base import (
    StoreFullError,
    StreamKey,
    WorkflowKey,
    WorkflowRecord,
    WorkflowStore,
)
from kvflow.server.store.memory import MemoryStore

__all__ = [
    "MemoryStore",
    "StoreFullError",
    "StreamKey",
    "WorkflowKey",
    "WorkflowRecord",
    "WorkflowStore",
]
