"""What a prompt is taken to be where a trace does not say."""

from __future__ import annotations

from typing import Final

from kvflow.workload.base import Piece

__all__ = ["DYNAMIC_TOKENS", "FIXED_TOKENS", "OUTPUT_TOKENS", "prompt_of"]

FIXED_TOKENS: Final = 1024
"""Of an agent's fixed prefix."""
DYNAMIC_TOKENS: Final = 256
"""Of what follows it in a prompt."""
OUTPUT_TOKENS: Final = 128


def prompt_of(
    fixed: Piece, prompt_tokens: int | None, own_key: str
) -> tuple[tuple[Piece, ...], int]:
    """Return a prompt that begins with the fixed prefix, and the number of its fixed pieces.

    Args:
        fixed: the agent's fixed prefix; may have no tokens.
        prompt_tokens: of the whole prompt; None if not known. A prompt that is not longer than the
            fixed prefix does not begin with it.
        own_key: of the rest, which no other prompt has.
    """
    if prompt_tokens is None:
        prompt_tokens = fixed.tokens + DYNAMIC_TOKENS
    own = prompt_tokens - fixed.tokens
    if not fixed.tokens or own < 1:
        return (Piece(own_key, max(prompt_tokens, 1)),), 0
    return (fixed, Piece(own_key, own)), 1
