"""Which messages came before.

QoS 1 delivers at least once. Events with a ``step_id`` are safe to repeat by themselves; for the
rest a sender may give a ``message_id``, and what the broker delivers again on its own account it
marks as such.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from hashlib import blake2b
from typing import Final

__all__ = ["Remembered", "redelivery_key"]

MAX_REMEMBERED: Final = 20_000


class Remembered:
    """The last ``max_remembered`` keys that were added. O(1) each."""

    def __init__(self, max_remembered: int = MAX_REMEMBERED) -> None:
        self._max = max_remembered
        self._keys: OrderedDict[Hashable, None] = OrderedDict()

    def __contains__(self, key: Hashable) -> bool:
        return key in self._keys

    def add(self, key: Hashable) -> None:
        self._keys[key] = None
        self._keys.move_to_end(key)
        if len(self._keys) > self._max:
            self._keys.popitem(last=False)


def redelivery_key(mid: int, topic: str, payload: bytes) -> Hashable:
    """The same for a message that the broker delivers again, and hardly for any other.

    The broker numbers its messages to us up to 65,535 and then starts anew, so the number alone
    would not do. Only for messages that the broker marks as delivered again.
    """
    return (mid, blake2b(topic.encode() + b"\0" + payload, digest_size=16).digest())
