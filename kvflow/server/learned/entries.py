"""What was learned of one family, as the text that a store keeps."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final

from pydantic import TypeAdapter

from kvflow.errors import KVFlowError
from kvflow.graph.learning import TransitionModel
from kvflow.graph.learning.snapshot import model_values, restore_model
from kvflow.graph.timing import FamilyDurations
from kvflow.graph.timing.snapshot import duration_values, restore_durations
from kvflow.protocol import Identifier
from kvflow.server.store import LearnedKey

__all__ = ["Learned", "UnreadableEntryError", "learned_from_text", "learned_text"]

Learned = TransitionModel | FamilyDurations

_FORM: Final = 1
_NAMES: Final = TypeAdapter(list[Identifier])


class UnreadableEntryError(KVFlowError):
    """The text says nothing that this version of KVFlow understands."""


def learned_text(learned: Learned) -> str:
    """JSON in ASCII. O(size of what was learned)."""
    values = (
        model_values(learned) if isinstance(learned, TransitionModel) else duration_values(learned)
    )
    return json.dumps({"form": _FORM, **values}, separators=(",", ":"))


def learned_from_text(key: LearnedKey, text: str) -> Learned:
    """What ``learned_text`` was called with, checked: nothing about a stored text is believed.

    Raises:
        UnreadableEntryError: says why.
    """
    try:
        values: Mapping[str, Any] = json.loads(text)
        if values["form"] != _FORM:
            raise ValueError(f"it has the form {values['form']!r}, and this one knows {_FORM}")
        _NAMES.validate_python(values["names"])
        if key.kind == "order":
            return restore_model(values)
        if key.kind == "durations":
            return restore_durations(values)
        raise ValueError(f"{key.kind!r} is no kind of what is learned")
    except (KeyError, TypeError, ValueError, IndexError, RecursionError) as error:
        raise UnreadableEntryError(f"{type(error).__name__}: {error}") from error
