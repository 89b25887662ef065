"""Where the service keeps its workflows."""

from kvflow.server.store.base import StoreFullError, WorkflowKey, WorkflowRecord, WorkflowStore
from kvflow.server.store.memory import MemoryStore

__all__ = ["MemoryStore", "StoreFullError", "WorkflowKey", "WorkflowRecord", "WorkflowStore"]
