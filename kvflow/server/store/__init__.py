"""Where the service keeps its workflows."""

from kvflow.server.store.aside import LearnedAside
from kvflow.server.store.base import (
    Change,
    ExpectedTimes,
    NoteKind,
    StoreConflictError,
    StoredState,
    StoreFullError,
    StoreUnavailableError,
    StreamKey,
    WorkflowKey,
    WorkflowRecord,
    WorkflowStore,
)
from kvflow.server.store.memory import MemoryStore

__all__ = [
    "Change",
    "ExpectedTimes",
    "LearnedAside",
    "MemoryStore",
    "NoteKind",
    "StoreConflictError",
    "StoreFullError",
    "StoreUnavailableError",
    "StoredState",
    "StreamKey",
    "WorkflowKey",
    "WorkflowRecord",
    "WorkflowStore",
]
