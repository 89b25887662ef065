"""Token counts, read from an answer as it passes by."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

__all__ = ["TokenUsage", "UsageReader"]

_TAIL_BYTES: Final = 16 * 1024
_NAME: Final = '"usage"'
_MAX_TOKENS: Final = 10_000_000
_DECODER: Final = json.JSONDecoder()


@dataclass(frozen=True, slots=True)
class TokenUsage:
    """What an engine said of one call; ``None`` where it said nothing."""

    prompt_tokens: int | None = None
    cached_tokens: int | None = None
    output_tokens: int | None = None


class UsageReader:
    """Keeps the end of an answer, where ``usage`` is, streamed or not.

    An answer is neither held up nor parsed as a whole: the last JSON object under the name
    ``usage`` counts. In a string that name would have its quotes escaped. Holds 16 KiB, and the
    chunk in which they begin.
    """

    def __init__(self) -> None:
        self._chunks: deque[bytes] = deque()
        self._size = 0

    def feed(self, chunk: bytes) -> None:
        """The answer's next bytes. O(1) amortised."""
        self._chunks.append(chunk)
        self._size += len(chunk)
        while self._size - len(self._chunks[0]) >= _TAIL_BYTES:
            self._size -= len(self._chunks.popleft())

    def usage(self) -> TokenUsage:
        """What was found so far. Never raises."""
        text = b"".join(self._chunks)[-_TAIL_BYTES:].decode("utf-8", errors="replace")
        end = len(text)
        while (start := text.rfind(_NAME, 0, end)) >= 0:
            end = start
            value = text[start + len(_NAME) :].lstrip()
            if not value.startswith(":"):
                continue
            try:
                found, _ = _DECODER.raw_decode(value[1:].lstrip())
            except (ValueError, RecursionError):
                continue
            if isinstance(found, Mapping):
                return _counts(found)
        return TokenUsage()


def _counts(usage: Mapping[str, Any]) -> TokenUsage:
    prompt = _count(usage, "prompt_tokens", "input_tokens")
    details = usage.get("prompt_tokens_details") or usage.get("input_tokens_details")
    cached = _count(details, "cached_tokens") if isinstance(details, Mapping) else None
    if cached is not None and prompt is not None and cached > prompt:
        cached = None
    return TokenUsage(prompt, cached, _count(usage, "completion_tokens", "output_tokens"))


def _count(counts: Mapping[str, Any], *names: str) -> int | None:
    for name in names:
        value = counts.get(name)
        if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= _MAX_TOKENS:
            return value
    return None
