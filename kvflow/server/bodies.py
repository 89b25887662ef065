"""Request bodies that are not simply one model of ``kvflow.protocol``."""

from __future__ import annotations

from typing import Annotated, Final

from pydantic import Discriminator, Field, Tag

from kvflow.protocol import LearnedWorkflowSpec, StepEvent, WorkflowSpec

__all__ = ["BODY_TAGS", "LIST_TAG", "MAX_EVENTS", "EventsBody", "WorkflowBody"]

MAX_EVENTS: Final = 10_000
"""In one request."""

# Pydantic puts the tag of the alternative it took into an error's location. No field has such a
# name, so they can be told from fields.
_ONE: Final = "<one event>"
LIST_TAG: Final = "<list of events>"
_DECLARED: Final = "<declared workflow>"
_LEARNED: Final = "<learned workflow>"
BODY_TAGS: Final = frozenset({_ONE, LIST_TAG, _DECLARED, _LEARNED})


def _one_or_list(body: object) -> str:
    return LIST_TAG if isinstance(body, list) else _ONE


def _declared_or_learned(body: object) -> str:
    learns = isinstance(body, dict) and body.get("learn") not in (None, False)
    return _LEARNED if learns or isinstance(body, LearnedWorkflowSpec) else _DECLARED


WorkflowBody = Annotated[
    Annotated[WorkflowSpec, Tag(_DECLARED)] | Annotated[LearnedWorkflowSpec, Tag(_LEARNED)],
    Discriminator(_declared_or_learned),
]
"""A declared workflow, or with ``learn`` one that declares nothing."""

EventsBody = Annotated[
    Annotated[StepEvent, Tag(_ONE)]
    | Annotated[list[StepEvent], Field(min_length=1, max_length=MAX_EVENTS), Tag(LIST_TAG)],
    Discriminator(_one_or_list),
]
"""One event or a list. Chosen by its form, so that errors are about that form only."""
