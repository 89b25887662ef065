"""The engine behind the front door: one pool of connections, and what is known of it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Final, Literal
from urllib.parse import urlsplit

import httpx2

from kvflow.server.front_door.adapters import EngineKind, EngineTraits
from kvflow.server.front_door.detection import ask_engine
from kvflow.server.front_door.priority import PriorityOrder
from kvflow.server.settings import is_loopback

__all__ = ["Engine", "PrioritySetting"]

PrioritySetting = Literal["auto", "on", "off"]

CONNECT_TIMEOUT_S: Final = 5.0
# Less than after which engines close a connection that is idle (uvicorn: 5 s), or a request could
# meet one that is just being closed.
_KEEPALIVE_S: Final = 3.0
_FIRST_ANSWER_S: Final = 2.0
_ASK_TIMEOUT_S: Final = 10.0
_ASK_AGAIN_S: Final = 30.0

logger = logging.getLogger("kvflow.server")


class Engine:
    """Where calls go.

    No call waits for a connection: the engine has the queue. Belongs to one event loop.

    Args:
        url: its base address, with or without ``/v1`` at the end.
        kind: what it is, or ``auto``: it is asked, and asked again now and then.
        priority: whether it schedules by priority; ``auto``: as far as it can be asked.
        silence_s: an engine that sends nothing for this long during a call is given up.
    """

    def __init__(
        self,
        url: str,
        *,
        api_key: str | None,
        kind: EngineKind | Literal["auto"],
        priority: PrioritySetting,
        silence_s: float,
        clock: Callable[[], float],
    ) -> None:
        self.url = url.rstrip("/").removesuffix("/v1")
        self.authorization = None if api_key is None else f"Bearer {api_key}"
        self._kind = kind
        self._priority = priority
        self._clock = clock
        self._traits = self._configured(EngineTraits())
        self._asked_s: float | None = None
        self._asking: asyncio.Task[None] | None = None
        self.client = httpx2.AsyncClient(
            base_url=self.url,
            timeout=httpx2.Timeout(silence_s, connect=CONNECT_TIMEOUT_S),
            limits=httpx2.Limits(
                max_connections=None, max_keepalive_connections=256, keepalive_expiry=_KEEPALIVE_S
            ),
            # A proxy from the environment cannot reach this machine's loopback.
            trust_env=not is_loopback(urlsplit(self.url).hostname or ""),
        )

    async def traits(self) -> EngineTraits:
        """What the engine is. Waits, for 2 s at most, only while that was never found out."""
        if self._asked_s is None:
            asking = self._ask()
            await asyncio.wait([asking], timeout=_FIRST_ANSWER_S)
        elif self._clock() - self._asked_s > _ASK_AGAIN_S:
            self._ask()
        return self._traits

    @property
    def known_traits(self) -> EngineTraits:
        """What is known now, without asking."""
        return self._traits

    def failed(self) -> None:
        """The engine did not answer a call: it may be another when it is back."""
        self._asked_s = None

    async def close(self) -> None:
        if self._asking is not None:
            self._asking.cancel()
            await asyncio.wait([self._asking])
        await self.client.aclose()

    def _ask(self) -> asyncio.Task[None]:
        if self._asking is None or self._asking.done():
            self._asking = asyncio.create_task(self._take_answer(), name="kvflow-ask-engine")
        return self._asking

    async def _take_answer(self) -> None:
        try:
            async with asyncio.timeout(_ASK_TIMEOUT_S):
                found = await ask_engine(self.client)
        except (httpx2.HTTPError, TimeoutError) as error:
            logger.debug("engine %s was asked what it is: %r", self.url, error)
            return
        except Exception:
            # Calls go on, and it is asked again as always.
            logger.exception("what engine %s says of itself is not understood", self.url)
            found = EngineTraits()
        self._asked_s = self._clock()
        traits = self._configured(found)
        if traits != self._traits:
            logger.info(
                "engine %s is of the kind %s, priority: %s", self.url, traits.kind, traits.priority
            )
        self._traits = traits

    def _configured(self, found: EngineTraits) -> EngineTraits:
        """What was found, but for what the settings say."""
        kind = found.kind if self._kind == "auto" else self._kind
        order = found.priority
        if self._priority == "off":
            order = "none"
        elif self._priority == "on" and order == "none":
            order = _usual_order(kind)
        return EngineTraits(kind, order)


def _usual_order(kind: EngineKind) -> PriorityOrder:
    if kind == "unknown":
        return "none"
    return "lower_first" if kind == "vllm" else "higher_first"
