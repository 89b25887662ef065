"""Request bodies that are not simply one model of ``kvflow.protocol``."""

from __future__ import annotations

from typing import Annotated, Final

from pydantic import Discriminator, Field, Tag

from kvflow.protocol import StepEvent

__all__ = ["BODY_TAGS", "EventsBody"]

# Pydantic puts the tag of the alternative it took into an error's location. No field has such a
# name, so they can be told from fields.
_ONE: Final = "<one event>"
_LIST: Final = "<list of events>"
BODY_TAGS: Final = frozenset({_ONE, _LIST})


def _one_or_list(body: object) -> str:
    return _LIST if isinstance(body, list) else _ONE


EventsBody = Annotated[
    Annotated[StepEvent, Tag(_ONE)]
    | Annotated[list[StepEvent], Field(min_length=1, max_length=10_000), Tag(_LIST)],
    Discriminator(_one_or_list),
]
"""One event or a list. Chosen by its form, so that errors are about that form only."""
