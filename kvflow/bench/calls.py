"""One call to a running engine, streamed and measured."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from types import TracebackType
from typing import Any, Final, Self

import httpx2

from kvflow.bench.prompts import GENERATE_ROUTE
from kvflow.errors import KVFlowError

__all__ = ["CallFailedError", "EngineCalls", "Reply", "read_chat", "read_generate"]

_DONE: Final = "[DONE]"


class CallFailedError(KVFlowError):
    """The engine refused a call, or broke its answer off."""


@dataclass(frozen=True, slots=True)
class Reply:
    """An engine's answer.

    Attributes:
        prompt_ids, output_ids: token ids; empty if the engine does not report them.
        device_tokens, host_tokens, storage_tokens: where the prompt's cached tokens were when the
            request entered a batch.
        started_s: when the request was sent, on the clock given.
        ttft_s: from then to the first token.
    """

    text: str
    prompt_ids: tuple[int, ...] = field(repr=False)
    output_ids: tuple[int, ...] = field(repr=False)
    prompt_tokens: int
    cached_tokens: int
    device_tokens: int
    host_tokens: int
    storage_tokens: int
    output_tokens: int
    started_s: float
    ttft_s: float
    total_s: float

    @property
    def output_hash(self) -> str:
        """SHA-256 of the answer's token ids, or of its text where there are none."""
        ids = " ".join(map(str, self.output_ids))
        return sha256((ids or self.text).encode()).hexdigest()


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

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
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
                lines = answer.aiter_lines()
                if route == GENERATE_ROUTE:
                    sent = tuple(body["input_ids"])
                    return await read_generate(lines, sent, started_s, self._clock)
                return await read_chat(lines, started_s, self._clock)
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


async def read_generate(
    lines: AsyncIterator[str],
    prompt_ids: tuple[int, ...],
    started_s: float,
    clock: Callable[[], float],
) -> Reply:
    """Read ``/generate``'s stream as it comes in. Each message repeats all tokens so far, so only
    those until the first token and the last one are decoded.

    Raises:
        CallFailedError: the engine reports an error, or the answer is not whole.
    """
    first_s: float | None = None
    last = "{}"
    async for line in lines:
        data = _data(line)
        if data is None:
            continue
        if first_s is None and json.loads(data).get("output_ids"):
            first_s = clock()
        last = data
    end_s = clock()
    content = json.loads(last)
    if "error" in content:
        raise CallFailedError(f"the engine reports {content['error']}")
    meta = content.get("meta_info") or {}
    if not meta.get("finish_reason"):
        raise CallFailedError("the answer broke off")
    output_ids = tuple(content.get("output_ids") or ())
    if len(output_ids) != meta["completion_tokens"]:
        raise CallFailedError(
            f"the last message has {len(output_ids)} of {meta['completion_tokens']} tokens; "
            "leave out flags that make SGLang stream increments"
        )
    return _reply(
        content.get("text") or "",
        prompt_ids,
        output_ids,
        tokens=(meta["prompt_tokens"], meta["cached_tokens"] or 0, meta["completion_tokens"]),
        tiers=meta.get("cached_tokens_details"),
        times_s=(started_s, first_s, end_s),
    )


async def read_chat(
    lines: AsyncIterator[str], started_s: float, clock: Callable[[], float]
) -> Reply:
    """Read a streamed chat completion as it comes in.

    Raises:
        CallFailedError: the engine reports an error, or the answer is not whole.
    """
    pieces: list[str] = []
    usage: dict[str, Any] | None = None
    extension: dict[str, Any] = {}
    first_s: float | None = None
    async for line in lines:
        data = _data(line)
        if data is None:
            continue
        chunk = json.loads(data)
        if "error" in chunk:
            raise CallFailedError(f"the engine reports {chunk['error']}")
        usage = chunk.get("usage") or usage
        extension |= chunk.get("sglext") or {}
        for choice in chunk.get("choices") or ():
            if text := choice["delta"].get("content"):
                first_s = clock() if first_s is None else first_s
                pieces.append(text)
    end_s = clock()
    if usage is None:
        raise CallFailedError("the answer ended without a report of its tokens")
    cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
    return _reply(
        "".join(pieces),
        tuple(extension.get("input_ids") or ()),
        tuple((extension.get("output_ids") or [()])[0]),
        tokens=(usage["prompt_tokens"], cached, usage["completion_tokens"]),
        tiers=extension.get("cached_tokens_details"),
        times_s=(started_s, first_s, end_s),
    )


def _data(line: str) -> str | None:
    """What an event says; None for other lines and the end."""
    if not line.startswith("data:"):
        return None
    data = line.removeprefix("data:").strip()
    return None if data == _DONE else data


def _reply(
    text: str,
    prompt_ids: tuple[int, ...],
    output_ids: tuple[int, ...],
    *,
    tokens: tuple[int, int, int],
    tiers: Mapping[str, Any] | None,
    times_s: tuple[float, float | None, float],
) -> Reply:
    prompt_tokens, cached_tokens, output_tokens = tokens
    started_s, first_s, end_s = times_s
    tiers = tiers or {"device": cached_tokens}
    return Reply(
        text=text,
        prompt_ids=prompt_ids,
        output_ids=output_ids,
        prompt_tokens=prompt_tokens,
        cached_tokens=cached_tokens,
        device_tokens=tiers.get("device") or 0,
        host_tokens=tiers.get("host") or 0,
        storage_tokens=tiers.get("storage") or 0,
        output_tokens=output_tokens,
        started_s=started_s,
        # An answer without a visible token came as a whole.
        ttft_s=(end_s if first_s is None else first_s) - started_s,
        total_s=end_s - started_s,
    )
