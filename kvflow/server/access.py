"""Who may come in: an ASGI middleware that checks the key, its scope and its client's rate."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping
from typing import Final

from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from kvflow.server.identity import IDENTITY_KEY, KEYS_KEY
from kvflow.server.keys import Authenticated, KeyRing, Refusal, RefusalReason
from kvflow.server.limits import Limits
from kvflow.server.metrics import ServiceMetrics
from kvflow.server.problems import problem_response
from kvflow.server.rates import Buckets, retry_after
from kvflow.server.scopes import allows

__all__ = ["RequireKey"]

# Failed attempts of one address: so many at once, then one for each of these seconds.
_FAILURES_PER_S: Final = 1.0
_FAILURES_AT_ONCE: Final = 20.0
_LOG_LINES_PER_S: Final = 1 / 60
_DETAILS: Final[Mapping[RefusalReason, str]] = {
    "missing": "this service has an API key: send it as 'Authorization: Bearer <key>'",
    "unknown": "the API key in the Authorization header is not this service's key",
    "expired": "the API key in the Authorization header has expired",
    "revoked": "the API key in the Authorization header was revoked",
}

logger = logging.getLogger("kvflow.server")


class RequireKey:
    """401 for all paths but ``open_paths`` without a key that is right, 403 with one of another
    scope, 429 for a client over its rate.

    What is not named is closed, so that a new route cannot be left open by mistake. A request that
    passes carries its identity, see ``kvflow.server.identity``.

    An address that has failed often is answered 429. Keys of the key file are checked even then:
    they cannot be guessed, and nobody can lock their owners out by failing from the same address.
    The one of ``KVFLOW_API_KEY`` may be weak, so it has to wait.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        keys: KeyRing,
        limits: Limits,
        metrics: ServiceMetrics,
        open_paths: Collection[str],
    ) -> None:
        self._app = app
        self._keys = keys
        self._limits = limits
        self._metrics = metrics
        self._open_paths = frozenset(open_paths)
        self._failures = Buckets(burst_s=_FAILURES_AT_ONCE / _FAILURES_PER_S)
        self._log_lines = Buckets(burst_s=1.0)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in self._open_paths:
            await self._app(scope, receive, send)
            return
        address = scope["client"][0] if scope.get("client") else "unknown"
        wait_s = self._failures.wait_s(address, _FAILURES_PER_S)
        given = [value for name, value in scope["headers"] if name == b"authorization"]
        found = self._keys.authenticate(_bearer(given), only_file=wait_s > 0)
        if isinstance(found, Refusal):
            reason = "unknown" if given and found.reason == "missing" else found.reason
            refusal = self._refusal(reason, found.key_id, address, wait_s)
            await refusal(scope, receive, send)
            return
        if not allows(found.identity.scope, scope["path"]):
            self._metrics.refused.labels("scope").inc()
            refusal = problem_response(
                403,
                f"a key of the scope {found.identity.scope!r} does not open {scope['path']}",
            )
            await refusal(scope, receive, send)
            return
        wait_s = self._limits.request(found.identity)
        if wait_s > 0:
            self._metrics.refused.labels("rate").inc()
            refusal = problem_response(
                429,
                "this client sends more requests than it may; wait as Retry-After says",
                headers=retry_after(wait_s),
            )
            await refusal(scope, receive, send)
            return
        scope[IDENTITY_KEY] = found.identity
        scope[KEYS_KEY] = self._keys
        if scope["method"] == "GET":
            send = _EndsWithItsKey(self._keys, found, send).send
        await self._app(scope, receive, send)

    def _refusal(
        self, reason: RefusalReason, key_id: str | None, address: str, wait_s: float
    ) -> Response:
        if wait_s > 0:
            self._metrics.refused.labels("attempts").inc()
            return problem_response(
                429,
                "too many requests with a wrong key, or with none, came from this address; "
                "wait as Retry-After says",
                headers=retry_after(wait_s),
            )
        self._metrics.refused.labels(reason).inc()
        self._failures.take(address, _FAILURES_PER_S)
        if self._log_lines.take(address, _LOG_LINES_PER_S) == 0.0:
            logger.warning(
                "refused a request from %s: its key is %s%s; those of the next minute are counted "
                "only",
                address,
                reason,
                f" (key_id {key_id})" if key_id else "",
            )
        challenge = 'Bearer realm="kvflow"'
        if reason != "missing":
            challenge += ', error="invalid_token"'
        return problem_response(401, _DETAILS[reason], headers={"WWW-Authenticate": challenge})


def _bearer(given: list[bytes]) -> str | None:
    """The key in the header; ``None`` if there is not exactly one header with one."""
    scheme, _, key = given[0].partition(b" ") if len(given) == 1 else (b"", b"", b"")
    return key.strip().decode("latin-1") if scheme.lower() == b"bearer" else None


class _EndsWithItsKey:
    """Ends an event stream when the key it was asked for with ends.

    The server then tells whoever makes the stream that the reader has gone. Only for what is read:
    a generation that has begun goes on to its end.
    """

    def __init__(self, keys: KeyRing, who: Authenticated, send: Send) -> None:
        self._keys = keys
        self._who = who
        self._send = send
        self._endless = False
        self._ended = False

    async def send(self, message: Message) -> None:
        if self._ended:
            return
        if message["type"] == "http.response.start":
            headers = message.get("headers", ())
            self._endless = all(name.lower() != b"content-length" for name, _ in headers)
        elif self._endless and message.get("more_body") and not self._keys.still_valid(self._who):
            self._ended = True
            message = {**message, "body": b"", "more_body": False}
        await self._send(message)
