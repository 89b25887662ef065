"""Calls to a running engine, streamed and measured."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any, Self

import httpx2

from kvflow.bench.prompts import GENERATE_ROUTE
from kvflow.bench.reply import ChatReading, GenerateReading, Reply
from kvflow.demo.calls import CallFailedError

__all__ = ["EngineCalls"]


class EngineCalls:
    """A client of one engine. Use as an async context manager; calls may overlap."""

    def __init__(
        self,
        base_url: str,
        clock: Callable[[], float],
        *,
        call_limit_s: float = 600.0,
        transport: httpx2.AsyncBaseTransport | None = None,
    ) -> None:
        self._clock = clock
        self._http = httpx2.AsyncClient(
            base_url=base_url,
            timeout=call_limit_s,
            # How many calls are under way is for the workload to say.
            limits=httpx2.Limits(max_connections=None),
            trust_env=False,
            transport=transport,
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._http.aclose()

    async def ask(
        self,
        route: str,
        body: Mapping[str, Any],
        metadata: Mapping[str, Any] | None = None,
        priority: int | None = None,
    ) -> Reply:
        """Make one call.

        Args:
            metadata: ``custom_params``; None for an engine that gets none.
            priority: what the request says of itself; None: nothing.

        Raises:
            CallFailedError: the engine does not answer, refuses, or breaks off.
        """
        content = dict(body)
        if priority is not None:
            content["priority"] = priority
        if metadata is not None and route == GENERATE_ROUTE:
            content["sampling_params"] = {**body["sampling_params"], "custom_params": metadata}
        elif metadata is not None:
            content["custom_params"] = metadata
        encoded = json.dumps(content)
        started_s = self._clock()
        try:
            async with self._http.stream(
                "POST", route, content=encoded, headers={"Content-Type": "application/json"}
            ) as answer:
                if not answer.is_success:
                    detail = (await answer.aread()).decode(errors="replace")
                    raise CallFailedError(f"HTTP {answer.status_code}: {detail[:500]}")
                reading: GenerateReading | ChatReading
                if route == GENERATE_ROUTE:
                    reading = GenerateReading(tuple(body["input_ids"]), started_s, self._clock)
                else:
                    reading = ChatReading(started_s, self._clock)
                async for line in answer.aiter_lines():
                    reading.take(line)
                return reading.reply()
        except httpx2.HTTPError as error:
            raise CallFailedError(f"{type(error).__name__}: {error}") from error

    async def metrics_text(self) -> str:
        """The engine's Prometheus exposition.

        Raises:
            CallFailedError: it does not answer.
        """
        try:
            return (await self._http.get("/metrics")).raise_for_status().text
        except httpx2.HTTPError as error:
            raise CallFailedError(f"/metrics: {type(error).__name__}: {error}") from error
