"""What was learned, over a restart of the service: in the store, a little behind what is known."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Final

from kvflow.graph.learning import FamilyKey
from kvflow.server.learned.entries import (
    Learned,
    UnreadableEntryError,
    learned_from_text,
    learned_text,
)
from kvflow.server.learned.orders import LearnedOrders
from kvflow.server.store import (
    LearnedKey,
    LearnedKind,
    StoreUnavailableError,
    WorkflowStore,
)

__all__ = ["LearnedPersistence"]

_WRITE_AGAIN_S: Final = 5.0
_AT_ONCE: Final = 200
_WRITE_CHARS: Final = 128 * 1024
_MAX_CHARS: Final = 256 * 1024
_MAX_KIND_CHARS: Final = 32 * 1024 * 1024
_LOOKED_AT_ONCE: Final = 1000

logger = logging.getLogger("kvflow.server")


@dataclass(frozen=True, slots=True)
class _Kept:
    """What the store has of a family: ``learned`` as of ``revision``, or with 0 chars nothing."""

    learned: Learned
    revision: int
    at_s: float
    chars: int


@dataclass(frozen=True, slots=True)
class _News:
    """What is to be written of a family, or with no text forgotten."""

    key: LearnedKey
    text: str | None
    kept: _Kept | None


class LearnedPersistence:
    """Writes what ``orders`` learns to the store, and brings it back.

    A family is written when it has learned something, but not again for 5 s, and about 200 of them
    a second. So a killed service loses some seconds' learning, which comes again with the next
    workflows; one that is stopped loses nothing. Nothing is ever waited for by a request, but the
    forgetting of a family.

    What is kept is bounded: 256 KiB for a family (a larger one, of which hardly an order can be
    known, is learned anew after a restart) and 32 MiB for each kind; the families written longest
    ago make room.

    Belongs to one event loop.

    Args:
        clock: seconds that only go forward.
        max_kind_chars: bound of each kind.
    """

    def __init__(
        self,
        orders: LearnedOrders,
        store: WorkflowStore,
        *,
        clock: Callable[[], float] = time.monotonic,
        max_kind_chars: int = _MAX_KIND_CHARS,
    ) -> None:
        self._orders = orders
        self._store = store
        self._clock = clock
        self._max_kind_chars = max_kind_chars
        self._writing = asyncio.Lock()
        self._kept: dict[LearnedKind, OrderedDict[FamilyKey, _Kept]] = {
            "order": OrderedDict(),
            "durations": OrderedDict(),
        }

    async def load(self) -> None:
        """Bring back what the store has. Once, before the first request.

        An entry that cannot be read is dropped, and the log says so. Never raises: what is not
        brought back is learned again.
        """
        unreadable: dict[LearnedKey, str | None] = {}
        try:
            async for found in self._store.learned():
                for key, text in found:
                    try:
                        learned = learned_from_text(key, text)
                    except UnreadableEntryError as error:
                        logger.warning("what was learned of %s is dropped: %s", key, error)
                        unreadable[key] = None
                    else:
                        self._orders.restore(key, learned)
                        self._note(
                            key, _Kept(learned, learned.revision, -_WRITE_AGAIN_S, len(text))
                        )
            if unreadable:
                await self._store.keep_learned(unreadable)
        except StoreUnavailableError as error:
            logger.warning("what was learned before is not brought back: %s", error)
        except Exception:
            logger.exception("what was learned before is not brought back")

    async def look(self) -> None:
        """Write what is due. About once a second.

        Raises:
            StoreUnavailableError: it could not be written; the next look tries again.
        """
        await self._write(self._clock() - _WRITE_AGAIN_S, _AT_ONCE)

    async def close(self) -> None:
        """Write everything that is not written, as far as that is possible."""
        with suppress(StoreUnavailableError):  # the store has said so
            await self._write(float("inf"), None)

    async def forget(self, namespace: str, client_id: str, family: str) -> None:
        """Forget what was learned of the order of a family, here and in the store.

        Raises:
            FamilyNotFoundError: nothing is known of it.
            StoreUnavailableError: the store still has it; nothing was forgotten.
        """
        self._orders.check_known(namespace, client_id, family)
        async with self._writing:
            key = LearnedKey("order", namespace, client_id, family)
            await self._store.keep_learned({key: None})
            self._kept["order"].pop(key[1:], None)
            self._orders.forget(namespace, client_id, family)

    async def _write(self, before_s: float, most: int | None) -> None:
        """Write at most so many of what was last written before then."""
        async with self._writing:
            waiting: list[_News] = []
            chars = 0
            for key in (due := await self._due(before_s, most)):
                waiting.append(self._news(key))
                chars += len(waiting[-1].text or "")
                if chars >= _WRITE_CHARS or len(waiting) >= _AT_ONCE:
                    await self._put(waiting)
                    waiting, chars = [], 0
                await asyncio.sleep(0)  # encoding can take a millisecond
            if due:
                await self._put(waiting)
                await self._put(self._too_much())

    async def _due(self, before_s: float, most: int | None) -> list[LearnedKey]:
        due: list[LearnedKey] = []
        for kind, kept in self._kept.items():
            known = self._orders.known(kind)
            due += [LearnedKey(kind, *family) for family in kept if family not in known]
            for number, (family, learned) in enumerate(list(known.items())):
                if number % _LOOKED_AT_ONCE == _LOOKED_AT_ONCE - 1:
                    await asyncio.sleep(0)
                if _is_due(kept.get(family), learned, before_s):
                    due.append(LearnedKey(kind, *family))
        return due[:most]

    def _news(self, key: LearnedKey) -> _News:
        learned = self._orders.known(key.kind).get(key[1:])
        if learned is None:
            return _News(key, None, None)
        text: str | None = learned_text(learned)
        chars = len(text or "")
        if chars > _MAX_CHARS:
            text, chars = None, 0
        return _News(key, text, _Kept(learned, learned.revision, self._clock(), chars))

    def _too_much(self) -> list[_News]:
        found: list[_News] = []
        for kind, kept in self._kept.items():
            excess = sum(one.chars for one in kept.values()) - self._max_kind_chars
            for family, one in kept.items():
                if excess <= 0:
                    break
                if one.chars:
                    excess -= one.chars
                    nothing = replace(one, chars=0)
                    found.append(_News(LearnedKey(kind, *family), None, nothing))
        return found

    async def _put(self, news: list[_News]) -> None:
        if not news:
            return
        await self._store.keep_learned({one.key: one.text for one in news})
        for one in news:
            self._note(one.key, one.kept)

    def _note(self, key: LearnedKey, kept: _Kept | None) -> None:
        of_kind = self._kept[key.kind]
        if kept is None:
            of_kind.pop(key[1:], None)
        else:
            of_kind[key[1:]] = kept
            of_kind.move_to_end(key[1:])


def _is_due(before: _Kept | None, learned: Learned, before_s: float) -> bool:
    if before is None or before.learned is not learned:
        return learned.revision > 0
    return learned.revision != before.revision and before.at_s <= before_s
