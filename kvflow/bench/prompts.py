"""What a call of a workload becomes on the wire: token ids, or chat messages."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any, Final

from kvflow.bench.vocabulary import TokenVocabulary
from kvflow.workload import Piece, WorkloadCall

__all__ = ["GENERATE_ROUTE", "TextPrompts", "TokenPrompts", "words"]

GENERATE_ROUTE: Final = "/generate"
CHAT_ROUTE: Final = "/v1/chat/completions"

# Each is one token to SmolLM2 and to most vocabularies of English, so words count as tokens.
_WORDS: Final = (
    *("river", "mountain", "market", "letter", "garden", "winter", "engine", "doctor", "bridge"),
    *("window", "silver", "captain", "forest", "number", "morning", "island", "paper", "village"),
    *("teacher", "harbour"),
)

Body = dict[str, Any]


class TokenPrompts:
    """Prompts as token ids; an earlier call's answer is what the engine really answered."""

    route: Final = GENERATE_ROUTE

    def __init__(self, vocabulary: TokenVocabulary) -> None:
        self._vocabulary = vocabulary
        self._fixed: dict[Piece, list[int]] = {}

    def body(self, call: WorkloadCall, answers: Mapping[str, Any]) -> Body:
        """The request; ``answers``: by key, the token ids of answers given so far."""
        ids: list[int] = []
        for position, piece in enumerate(call.prompt):
            if piece.key in answers:
                ids += answers[piece.key]
            elif position < call.fixed_pieces:
                ids += self._fixed_ids(piece)
            else:
                ids += self._vocabulary.ids(piece)
        return {
            "input_ids": ids,
            "sampling_params": {
                "temperature": 0,
                "max_new_tokens": call.answer.tokens,
                "ignore_eos": True,
            },
            "stream": True,
        }

    def _fixed_ids(self, piece: Piece) -> list[int]:
        # Asked for again and again, and making them takes longer than sending them.
        known = self._fixed.get(piece)
        if known is None:
            known = self._fixed[piece] = self._vocabulary.ids(piece)
        return known


class TextPrompts:
    """Chats in words, about one token each; the model's chat template adds some.

    The fixed pieces are the system message. What follows are user messages, with the assistant's
    own answers between them where the workload has a history.
    """

    route: Final = CHAT_ROUTE

    def __init__(self, seed: int = 0) -> None:
        self._seed = seed

    def body(self, call: WorkloadCall, answers: Mapping[str, Any]) -> Body:
        """The request; ``answers``: by key, the text of answers given so far."""
        fixed = " ".join(self._text(piece) for piece in call.prompt[: call.fixed_pieces])
        messages = [{"role": "system", "content": fixed}] if fixed else []
        for piece in call.prompt[call.fixed_pieces :]:
            role = "assistant" if piece.key in answers else "user"
            text = answers[piece.key] if role == "assistant" else self._text(piece)
            if messages and messages[-1]["role"] == role:
                messages[-1]["content"] += f" {text}"
            else:
                messages.append({"role": role, "content": text})
        return {
            "model": "default",
            "messages": messages,
            "max_tokens": call.answer.tokens,
            "ignore_eos": True,
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True},
            "return_cached_tokens_details": True,
            "return_input_ids_in_sglext": True,
            "return_output_ids_in_sglext": True,
        }

    def _text(self, piece: Piece) -> str:
        return words(f"{self._seed} {piece.key}", piece.tokens)


def words(seed: str, count: int) -> str:
    """Ordinary words in an order that depends on ``seed``."""
    return " ".join(random.Random(seed).choices(_WORDS, k=count))
