"""Where the service keeps its workflows."""

from kvflow.server.store.aside import LearnedAside
from kvflow.server.store.base import (
    Change,
    ExpectedTimes,
    LearnedKey,
    LearnedKind,
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
    "LearnedKey",
    "LearnedKind",
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
