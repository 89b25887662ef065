"""Sessions as Dynamo's clients name them, as agents of workflows."""

from __future__ import annotations

from collections import OrderedDict
from typing import Final

__all__ = ["SessionTree"]

_MAX_SESSIONS: Final = 65_536


class SessionTree:
    """Which session came from which.

    A session is one chain of reasoning, that is one agent; a tree of sessions is a workflow, named
    by its root. Bounded: the session seen longest ago is forgotten first, and its descendants then
    name their own parent as their root. Belongs to one event loop. O(1).
    """

    def __init__(self, max_sessions: int = _MAX_SESSIONS) -> None:
        self._max_sessions = max_sessions
        self._roots: OrderedDict[tuple[str, str], str] = OrderedDict()

    def place(self, namespace: str, session_id: str, parent_session_id: str | None) -> str:
        """The root of the session's tree, which is the session itself if it has no parent.

        A parent is remembered, so later calls of the session need not name it.
        """
        key = (namespace, session_id)
        root = self._roots.get(key)
        if parent_session_id is not None and parent_session_id != session_id:
            root = self._roots.get((namespace, parent_session_id), parent_session_id)
        root = self._roots[key] = root or session_id
        self._roots.move_to_end(key)
        if len(self._roots) > self._max_sessions:
            self._roots.popitem(last=False)
        return root

    def root(self, namespace: str, session_id: str) -> str | None:
        """The root of a session that was seen, or ``None``."""
        return self._roots.get((namespace, session_id))
