"""What one client may do, so that it cannot use up what all share."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from kvflow.errors import RateLimitedError
from kvflow.server.identity import Identity
from kvflow.server.keys import KeyRing
from kvflow.server.rates import Buckets
from kvflow.server.settings import ServiceSettings

__all__ = ["DefaultLimits", "Limits"]

_BURST_S: Final = 2.0


@dataclass(frozen=True, slots=True)
class DefaultLimits:
    """What holds for a client for which the key file says nothing else; ``None``: no limit."""

    requests_per_s: float | None
    events_per_s: float | None
    max_workflows: int | None

    @classmethod
    def of(cls, settings: ServiceSettings) -> DefaultLimits:
        return cls(
            requests_per_s=settings.client_requests_per_s,
            events_per_s=settings.client_events_per_s,
            max_workflows=settings.client_max_workflows,
        )


class Limits:
    """Limits of clients. Those of a key with another scope, and an open service, have none.

    A rate holds over time; two seconds' worth may come at once.
    """

    def __init__(
        self,
        defaults: DefaultLimits,
        keys: KeyRing,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._defaults = defaults
        self._keys = keys
        self._requests = Buckets(burst_s=_BURST_S, clock=clock)
        self._events = Buckets(burst_s=_BURST_S, clock=clock)

    def request(self, who: Identity) -> float:
        """Count a request; 0, or the seconds its client has to wait before it sends the next."""
        client_id = _limited(who)
        if client_id is None:
            return 0.0
        per_s = self._keys.limits(client_id).requests_per_s or self._defaults.requests_per_s
        return 0.0 if per_s is None else self._requests.take(client_id, per_s)

    def events(self, who: Identity, count: int) -> None:
        """Count events that are about to be applied.

        Raises:
            RateLimitedError: the client has sent more than it may.
        """
        client_id = _limited(who)
        if client_id is None:
            return
        per_s = self._keys.limits(client_id).events_per_s or self._defaults.events_per_s
        if per_s is None:
            return
        if wait_s := self._events.take(client_id, per_s, count):
            raise RateLimitedError(
                f"client {client_id!r} sends more than {per_s:g} events per second", wait_s
            )

    def max_workflows(self, who: Identity) -> int | None:
        """How many live workflows its namespace may hold; ``None``: as many as the service."""
        client_id = _limited(who)
        if client_id is None:
            return None
        own = self._keys.limits(client_id).max_workflows
        return self._defaults.max_workflows if own is None else own


def _limited(who: Identity) -> str | None:
    return who.client_id if who.scope == "client" else None
