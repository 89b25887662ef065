"""Messages that came before what they build on, such as a finish before its start.

MQTT keeps the order within one topic and one sender; ``create`` and ``events`` are two topics, and
a workflow's steps may be told by several senders. So what does not fit yet is kept for a moment and
tried again after each message that was applied to its workflow.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, TypeVar

__all__ = ["EarlyMessages"]

Message = TypeVar("Message")
WorkflowKey = tuple[str, str]


@dataclass(frozen=True, slots=True)
class _Held(Generic[Message]):
    message: Message
    until_s: float


class EarlyMessages(Generic[Message]):
    """Bounded in time and number. No clock of its own.

    Args:
        wait_s: how long a message is kept.
        max_held: with more, the oldest are given up before their time.
    """

    def __init__(self, wait_s: float, max_held: int) -> None:
        self._wait_s = wait_s
        self._max_held = max_held
        self._by_workflow: dict[WorkflowKey, list[_Held[Message]]] = {}
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def hold(self, key: WorkflowKey, message: Message, now_s: float) -> None:
        self._by_workflow.setdefault(key, []).append(_Held(message, now_s + self._wait_s))
        self._count += 1

    def take(self, key: WorkflowKey) -> list[tuple[Message, float]]:
        """All of one workflow with their deadlines, in the order they came."""
        held = self._by_workflow.pop(key, [])
        self._count -= len(held)
        return [(one.message, one.until_s) for one in held]

    def put_back(self, key: WorkflowKey, messages: list[tuple[Message, float]]) -> None:
        """Those of ``take`` that still do not fit; they keep their deadlines."""
        if messages:
            newer = self._by_workflow.get(key, [])
            self._by_workflow[key] = [_Held(*one) for one in messages] + newer
            self._count += len(messages)

    def overdue(self, now_s: float) -> list[Message]:
        """Take out what has waited long enough, and the oldest of what is too much. O(held)."""
        excess = self._count - self._max_held
        deadlines = sorted(one.until_s for held in self._by_workflow.values() for one in held)
        limit_s = max(now_s, deadlines[excess - 1]) if excess > 0 else now_s
        given_up: list[Message] = []
        for key in list(self._by_workflow):
            held = self._by_workflow[key]
            given_up += [one.message for one in held if one.until_s <= limit_s]
            left = [one for one in held if one.until_s > limit_s]
            if left:
                self._by_workflow[key] = left
            else:
                del self._by_workflow[key]
        self._count -= len(given_up)
        return given_up
