"""Options that take one of a few words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from kvflow.errors import InvalidInputError

__all__ = ["one_of"]

Word = TypeVar("Word", bound=str)


def one_of(option: str, given: str, known: Sequence[Word]) -> Word:
    """The known word that was given.

    Raises:
        InvalidInputError: it is none of them; names the option and all of them.
    """
    for word in known:
        if word == given:
            return word
    *others, last = known
    words = f"{', '.join(others)} or {last}"
    raise InvalidInputError([option], f"{given!r} is unknown; use {words}")
