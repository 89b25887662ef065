"""An engine's streamed answer, read and timed line by line, whoever receives the lines."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from kvflow.demo.calls import CallFailedError, answer_hash

__all__ = ["ChatReading", "GenerateReading", "Reply"]

_DONE: Final = "[DONE]"


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
        """What tells the answer from others."""
        return answer_hash(self.output_ids, self.text)


class GenerateReading:
    """Reads ``/generate``'s stream. Each message repeats all tokens so far, so only those until the
    first token and the last one are decoded.
    """

    def __init__(
        self, prompt_ids: tuple[int, ...], started_s: float, clock: Callable[[], float]
    ) -> None:
        self._prompt_ids = prompt_ids
        self._started_s = started_s
        self._clock = clock
        self._first_s: float | None = None
        self._last = "{}"

    def take(self, line: str) -> None:
        """The next line, as soon as it is there."""
        data = _data(line)
        if data is None:
            return
        if self._first_s is None and json.loads(data).get("output_ids"):
            self._first_s = self._clock()
        self._last = data

    def reply(self) -> Reply:
        """The answer, right after its last line.

        Raises:
            CallFailedError: the engine reports an error, or the answer is not whole.
        """
        end_s = self._clock()
        content = json.loads(self._last)
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
            self._prompt_ids,
            output_ids,
            tokens=(meta["prompt_tokens"], meta["cached_tokens"] or 0, meta["completion_tokens"]),
            tiers=meta.get("cached_tokens_details"),
            times_s=(self._started_s, self._first_s, end_s),
        )


class ChatReading:
    """Reads a streamed chat completion."""

    def __init__(self, started_s: float, clock: Callable[[], float]) -> None:
        self._started_s = started_s
        self._clock = clock
        self._first_s: float | None = None
        self._pieces: list[str] = []
        self._usage: dict[str, Any] | None = None
        self._extension: dict[str, Any] = {}

    def take(self, line: str) -> None:
        """The next line, as soon as it is there.

        Raises:
            CallFailedError: the engine reports an error.
        """
        data = _data(line)
        if data is None:
            return
        chunk = json.loads(data)
        if "error" in chunk:
            raise CallFailedError(f"the engine reports {chunk['error']}")
        self._usage = chunk.get("usage") or self._usage
        self._extension |= chunk.get("sglext") or {}
        for choice in chunk.get("choices") or ():
            if text := choice["delta"].get("content"):
                self._first_s = self._clock() if self._first_s is None else self._first_s
                self._pieces.append(text)

    def reply(self) -> Reply:
        """The answer, right after its last line.

        Raises:
            CallFailedError: the answer is not whole.
        """
        end_s = self._clock()
        usage, extension = self._usage, self._extension
        if usage is None:
            raise CallFailedError("the answer ended without a report of its tokens")
        cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
        return _reply(
            "".join(self._pieces),
            tuple(extension.get("input_ids") or ()),
            tuple((extension.get("output_ids") or [()])[0]),
            tokens=(usage["prompt_tokens"], cached, usage["completion_tokens"]),
            tiers=extension.get("cached_tokens_details"),
            times_s=(self._started_s, self._first_s, end_s),
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
