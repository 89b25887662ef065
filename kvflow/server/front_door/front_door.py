"""The front door: calls in, to the engine, and what the workflows learn of them."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Final

from fastapi import Request
from pydantic import ValidationError
from starlette.responses import Response

from kvflow.server.call_metrics import CallMetrics
from kvflow.server.front_door.account import HINTS_HEADER, Account
from kvflow.server.front_door.adapters import body_for_engine, parse_body
from kvflow.server.front_door.call_hints import read_hints
from kvflow.server.front_door.calls import Call, CallBook
from kvflow.server.front_door.engine import Engine
from kvflow.server.front_door.errors import openai_error
from kvflow.server.front_door.forwarding import CallEnd, Forwarded, request_headers
from kvflow.server.front_door.reporter import StepReporter
from kvflow.server.front_door.sessions import SessionTree
from kvflow.server.front_door.usage import TokenUsage
from kvflow.server.identity import Identity, cache_salt_for
from kvflow.server.kv_hints import KVHints, KVHintsEnvelope
from kvflow.server.kv_hints.actions import Target
from kvflow.server.store import StoreUnavailableError

__all__ = ["FrontDoor"]

_HINTS_LIMIT_S: Final = 0.25
_NO_ENGINE: Final = (
    "this service has no engine behind it: start it with "
    "'kvflow serve --engine-url http://127.0.0.1:30000' (KVFLOW_ENGINE_URL)"
)

logger = logging.getLogger("kvflow.server")


class FrontDoor:
    """Answers OpenAI's clients with what the engine answers.

    Args:
        engine: ``None``: every call is answered 503.
    """

    def __init__(
        self,
        engine: Engine | None,
        *,
        book: CallBook,
        reporter: StepReporter,
        sessions: SessionTree,
        kv_hints: KVHints,
        metrics: CallMetrics,
    ) -> None:
        self._engine = engine
        self._book = book
        self._reporter = reporter
        self._sessions = sessions
        self._kv_hints = kv_hints
        self._metrics = metrics

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """While the service serves."""
        try:
            yield
        finally:
            await self._reporter.close()
            if self._engine is not None:
                await self._engine.close()

    async def generation(self, request: Request, who: Identity) -> Response:
        """A call that an agent may make: its hints are read, and its steps reported."""
        if self._engine is None:
            return openai_error(503, _NO_ENGINE, "no_engine")
        raw = await request.body()
        started_s = time.perf_counter()
        path = request.scope["path"]
        account = Account()
        body = parse_body(raw)
        if body is None and who.scope == "client":
            # Whose it is could not be put into it, nor what keeps its cache apart.
            return openai_error(400, "the body must be a JSON object", "malformed_body")
        hints = read_hints(request.headers, body, who.namespace, self._sessions, account)
        traits = await self._engine.traits()
        account.engine = traits.kind
        call = await self._book.open(path, who, hints, account)
        try:
            if hints.kv_hints is not None:
                await self._take_kv_hints(hints.kv_hints, call, account)
            try:
                content = body_for_engine(
                    raw,
                    body,
                    path=path,
                    hints=hints,
                    owner=call.owner,
                    cache_salt=cache_salt_for(who),
                    traits=traits,
                    account=account,
                )
            except RecursionError:  # what can just be read can be too deep to write
                if who.scope == "client":
                    self._close(call, _unsent(400, started_s))
                    return openai_error(400, "the body is nested too deeply", "malformed_body")
                content = raw
            told = [(HINTS_HEADER.encode(), account.header())] if account.says_anything else []
            return self._forward(request, who, content, started_s, told=told, call=call)
        except BaseException:
            # The start of its step is told; the step must not seem to go on for ever.
            self._close(call, _unsent(None, started_s))
            raise

    async def passed_through(self, request: Request, who: Identity) -> Response:
        """A call that concerns no agent."""
        if self._engine is None:
            return openai_error(503, _NO_ENGINE, "no_engine")
        content = await request.body() if request.method == "POST" else None
        return self._forward(request, who, content, time.perf_counter())

    def _forward(
        self,
        request: Request,
        who: Identity,
        content: bytes | None,
        started_s: float,
        *,
        told: Sequence[tuple[bytes, bytes]] = (),
        call: Call | None = None,
    ) -> Forwarded:
        assert self._engine is not None  # noqa: S101 - for the type checker
        route = request.scope["route"].path
        query = request.scope["query_string"].decode("latin-1")
        target = request.scope["raw_path"].decode("latin-1") + (f"?{query}" if query else "")

        def ended(end: CallEnd) -> None:
            self._metrics.running.dec()
            self._metrics.calls.labels(route, end.outcome).inc()
            if end.first_byte_s is not None:
                self._metrics.first_byte_seconds.labels(route).observe(end.first_byte_s)
            if call is not None:
                self._close(call, end)

        self._metrics.running.inc()
        self._metrics.preparing_seconds.observe(time.perf_counter() - started_s)
        return Forwarded(
            self._engine,
            request.method,
            target,
            request_headers(
                request.scope["headers"], self._engine.authorization, shared=who.scope != "open"
            ),
            content,
            extra_headers=told,
            started_s=started_s,
            on_end=ended,
        )

    def _close(self, call: Call, end: CallEnd) -> None:
        try:
            self._book.close(call, end)
        except Exception:
            # The client has its answer; what is told of it must not take that back.
            logger.exception("the end of a call could not be told")

    async def _take_kv_hints(self, given: object, call: Call, account: Account) -> None:
        try:
            envelope = KVHintsEnvelope.model_validate(given)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            field = ".".join(str(part) for part in first["loc"])
            account.ignore("kv_hints", f"{field}: {first['msg']}" if field else first["msg"])
            return
        target = None
        if call.owner is not None:
            target = Target(call.owner.workflow_id, call.owner.agent_id)
        try:
            async with asyncio.timeout(_HINTS_LIMIT_S):
                answer = await self._kv_hints.apply(envelope, call.namespace, target)
        except (StoreUnavailableError, TimeoutError):
            account.ignore("kv_hints", "the service's database does not answer")
            return
        except Exception:
            logger.exception("the KV hints of a call could not be taken")
            account.ignore("kv_hints", "an error of the service, its log has the details")
            return
        for action in answer.actions:
            if action.status == "accepted":
                account.used[f"kv_hints.{action.action_id[:60]}"] = "accepted"
            else:
                account.ignore(f"kv_hints.{action.action_id}", f"{action.status}: {action.reason}")


def _unsent(status: int | None, started_s: float) -> CallEnd:
    return CallEnd("failed", status, time.perf_counter() - started_s, None, TokenUsage())
