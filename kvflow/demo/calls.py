"""One agent's call to the engine, made and measured as a user of the ``openai`` package would."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import TYPE_CHECKING, Any, Final

from kvflow.errors import KVFlowError

if TYPE_CHECKING:
    from openai import OpenAI

__all__ = ["Answer", "CallFailedError", "answer_hash", "ask", "connect"]

_TIMEOUT_S: Final = 300.0

# SGLang's own additions to the protocol; an engine that does not know them ignores them.
_REPORT: Final = {
    "return_cached_tokens_details": True,
    "return_input_ids_in_sglext": True,
    "return_output_ids_in_sglext": True,
}


class CallFailedError(KVFlowError):
    """The engine refused a call, or broke its answer off."""


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer and what it took.

    Attributes:
        prompt_ids, output_ids: token ids as the engine reports them; empty if it does not.
        cached_tokens: prompt tokens found in cache, whatever the tier.
        host_tokens: how many of these came from the host tier.
        ttft_s: from sending the request to the first piece of text.
        total_s: from sending the request to the end of the answer.
    """

    text: str
    prompt_ids: tuple[int, ...]
    output_ids: tuple[int, ...]
    prompt_tokens: int
    cached_tokens: int
    host_tokens: int
    output_tokens: int
    ttft_s: float
    total_s: float

    @property
    def output_hash(self) -> str:
        """What tells the answer from others."""
        return answer_hash(self.output_ids, self.text)


def answer_hash(output_ids: Sequence[int], text: str) -> str:
    """SHA-256 of the token ids of an answer, or of its text where there are none."""
    ids = " ".join(map(str, output_ids))
    return sha256((ids or text).encode()).hexdigest()


def connect(engine_url: str) -> OpenAI:
    """A client of the engine. One attempt per request: a retry would be measured as a slow call."""
    from openai import DefaultHttpxClient, OpenAI

    return OpenAI(
        base_url=f"{engine_url}/v1",
        api_key="none",
        max_retries=0,
        # A proxy from the environment cannot reach this machine's loopback.
        http_client=DefaultHttpxClient(trust_env=False, timeout=_TIMEOUT_S),
    )


def ask(
    client: OpenAI,
    messages: Sequence[Mapping[str, str]],
    max_tokens: int,
    clock: Callable[[], float] = time.perf_counter,
) -> Answer:
    """One greedy chat completion, streamed so that the first token is seen when it comes.

    An empty answer's first token came with its end.

    Raises:
        CallFailedError: the engine did not answer, refused, or broke off.
    """
    pieces: list[str] = []
    usage: Any = None
    extension: dict[str, Any] = {}
    start_s = clock()
    first_s: float | None = None
    try:
        stream: Any = client.chat.completions.create(
            model="default",
            messages=list(messages),
            max_tokens=max_tokens,
            temperature=0,
            stream=True,
            stream_options={"include_usage": True},
            extra_body=_REPORT,
        )
        for chunk in stream:
            usage = chunk.usage or usage
            extension |= getattr(chunk, "sglext", None) or {}
            text = chunk.choices[0].delta.content if chunk.choices else None
            if text:
                first_s = clock() if first_s is None else first_s
                pieces.append(text)
    except Exception as error:
        # Where a stream breaks off, errors of whichever HTTP library openai uses come through.
        raise CallFailedError(f"{type(error).__name__}: {error}") from error
    end_s = clock()
    if usage is None:
        raise CallFailedError("the answer ended without a report of its tokens")
    details = usage.prompt_tokens_details
    tiers = extension.get("cached_tokens_details") or {}
    return Answer(
        text="".join(pieces),
        prompt_ids=tuple(extension.get("input_ids") or ()),
        output_ids=tuple((extension.get("output_ids") or [()])[0]),
        prompt_tokens=usage.prompt_tokens,
        cached_tokens=(details.cached_tokens or 0) if details else 0,
        host_tokens=tiers.get("host", 0),
        output_tokens=usage.completion_tokens,
        ttft_s=(end_s if first_s is None else first_s) - start_s,
        total_s=end_s - start_s,
    )
