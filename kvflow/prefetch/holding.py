"""Status-aware scheduling: which waiting requests a batch passes over.

Source: KVFlow, arXiv 2507.07400, section on status-aware scheduling: a request whose prefix is
being loaded is skipped and another one that is ready is dispatched. It differs from the paper in
that nobody is skipped where nothing else is ready (the layer-wise overlap of copy and prefill is
used instead), and in that the wait is bounded.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["GRACE_S", "Holding", "WaitingRequest"]

GRACE_S = 0.05
"""For how much longer than estimated a copy is waited for."""


@dataclass(frozen=True, slots=True)
class WaitingRequest:
    """A request in the waiting queue.

    Attributes:
        rid: the request's id.
        arrives_in_s: estimated duration of the copy its prefix is part of; None if none is under
            way.
        into_host: the copy goes to host memory only. Until it is there the request cannot be
            overlapped with it, only computed in full.
        barred: its workflow has no place at present.
    """

    rid: str
    arrives_in_s: float | None = None
    into_host: bool = False
    barred: bool = False


class Holding:
    """Remembers since when requests are passed over, so that none starves.

    Deterministic: time comes from the first rank. Not thread-safe.
    """

    def __init__(self, grace_s: float = GRACE_S) -> None:
        self._grace_s = grace_s
        self._since_s: dict[str, float] = {}
        self._coming = False

    def passed_over(
        self, requests: Sequence[WaitingRequest], now_s: float | None
    ) -> frozenset[str]:
        """Requests to leave out of the next batch. O(requests).

        * A barred one is left out.
        * One whose prefix is coming into host memory is left out until ``grace_s`` after the copy
          should have been over; then it is computed.
        * One whose prefix is coming to the device is left out, for no longer than that, while
          another request is ready; where none is, it goes in at once and overlaps with the copy.

        Args:
            requests: all that wait, in order.
            now_s: None as long as there is no clock; then nobody is overdue.
        """
        coming = [r for r in requests if r.arrives_in_s is not None and not r.barred]
        self._coming = bool(coming)
        since_s = {r.rid: self._since_s.get(r.rid, now_s) for r in coming}
        self._since_s = {rid: s for rid, s in since_s.items() if s is not None}
        held = {r.rid for r in requests if r.barred}
        patient = [r for r in coming if not self._overdue(r, now_s)]
        held.update(r.rid for r in patient if r.into_host)
        to_device = {r.rid for r in patient if not r.into_host}
        if any(r.rid not in held and r.rid not in to_device for r in requests):
            held |= to_device
        return frozenset(held)

    @property
    def waiting(self) -> bool:
        """Whether the last call found requests whose time is being measured."""
        return self._coming

    def _overdue(self, request: WaitingRequest, now_s: float | None) -> bool:
        since_s = self._since_s.get(request.rid)
        if now_s is None or since_s is None or request.arrives_in_s is None:
            return False
        return now_s - since_s > request.arrives_in_s + self._grace_s
