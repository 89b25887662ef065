"""Every call of the service as a value: what to send, and how to read the answer. No I/O."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Generic, TypeVar
from urllib.parse import quote

from pydantic import BaseModel, TypeAdapter, ValidationError

from kvflow.errors import InvalidInputError, ServiceError
from kvflow.protocol import (
    EventsResult,
    LearnedWorkflowSpec,
    Problem,
    StepEvent,
    StepsView,
    WorkflowList,
    WorkflowSpec,
    WorkflowView,
)

__all__ = [
    "Call",
    "create_workflow",
    "delete_workflow",
    "get_workflow",
    "health",
    "list_workflows",
    "post_events",
    "read_reply",
    "ready",
    "steps",
]

T = TypeVar("T")
_M = TypeVar("_M", bound=BaseModel)

_EVENTS: Final = TypeAdapter(list[StepEvent])


@dataclass(frozen=True, slots=True)
class Call(Generic[T]):
    """One request, and the reading of its answer.

    ``accept`` lists statuses beyond 2xx that are an answer rather than an error.
    """

    method: str
    path: str
    read: Callable[[int, bytes], T]
    body: bytes | None = None
    params: Mapping[str, str | int] = field(default_factory=dict)
    accept: tuple[int, ...] = ()


AnyWorkflowSpec = WorkflowSpec | LearnedWorkflowSpec | Mapping[str, Any]
"""A declared workflow, or with ``learn`` one that declares nothing."""


def create_workflow(spec: AnyWorkflowSpec, client_id: str) -> Call[WorkflowView]:
    """``client_id`` is used where the spec names none.

    Raises:
        InvalidInputError: the spec is malformed; the field is named.
    """
    checked: WorkflowSpec | LearnedWorkflowSpec
    if isinstance(spec, WorkflowSpec | LearnedWorkflowSpec):
        checked = spec
    elif "learn" in spec:
        checked = _validated(LearnedWorkflowSpec, spec)
    else:
        checked = _validated(WorkflowSpec, spec)
    if "client_id" not in checked.model_fields_set:
        checked = checked.model_copy(update={"client_id": client_id})
    body = checked.model_dump_json(exclude_none=True).encode()
    return Call("POST", "/v1/workflows", _model(WorkflowView), body=body)


def get_workflow(workflow_id: str) -> Call[WorkflowView]:
    return Call("GET", _workflow_path(workflow_id), _model(WorkflowView))


def list_workflows(
    client_id: str | None, page: str | None, limit: int | None
) -> Call[WorkflowList]:
    params: dict[str, str | int] = {}
    if client_id is not None:
        params["client_id"] = client_id
    if page is not None:
        params["page"] = page
    if limit is not None:
        params["limit"] = limit
    return Call("GET", "/v1/workflows", _model(WorkflowList), params=params)


def delete_workflow(workflow_id: str) -> Call[None]:
    return Call("DELETE", _workflow_path(workflow_id), _nothing)


def post_events(
    workflow_id: str, events: Iterable[StepEvent | Mapping[str, Any]]
) -> Call[EventsResult]:
    """Events in order; the service applies all of them or none.

    Raises:
        InvalidInputError: an event is malformed; the field is named.
    """
    checked = [
        event
        if isinstance(event, StepEvent)
        else _validated(StepEvent, event, prefix=("events", index))
        for index, event in enumerate(events)
    ]
    return Call(
        "POST",
        _workflow_path(workflow_id) + "/events",
        _model(EventsResult),
        body=_EVENTS.dump_json(checked, exclude_none=True),
    )


def steps(workflow_id: str) -> Call[StepsView]:
    return Call("GET", _workflow_path(workflow_id) + "/steps", _model(StepsView))


def health() -> Call[None]:
    return Call("GET", "/health", _nothing)


def ready() -> Call[bool]:
    return Call("GET", "/ready", lambda status, _: status < 300, accept=(503,))


def read_reply(call: Call[T], url: str, status: int, body: bytes) -> T:
    """The answer to ``call``.

    Raises:
        ServiceError: the service refused, or this is not an answer of a KVFlow service.
    """
    if status < 300 or status in call.accept:
        try:
            return call.read(status, body)
        except ValidationError as error:
            raise ServiceError(
                status,
                {},
                f"{call.method} {url}: the answer is not one a KVFlow service gives "
                f"({error.error_count()} problems); is something else listening there?",
            ) from error
    raise _refusal(call, url, status, body)


def _refusal(call: Call[T], url: str, status: int, body: bytes) -> ServiceError:
    intro = f"{call.method} {url} was answered with {status}"
    try:
        problem = Problem.model_validate_json(body)
    except ValidationError:
        return ServiceError(
            status,
            {},
            f"{intro} and no problem details; is KVFLOW_SERVICE_URL a KVFlow service's?",
        )
    text = f"{intro}: {problem.detail or problem.title}"
    missing = [e for e in problem.errors if e.problem not in problem.detail]
    if missing:
        text += " (" + "; ".join(f"{e.field}: {e.problem}" for e in missing) + ")"
    if any(error.field == "client_id" for error in problem.errors) and status == 403:
        text += "; say whose workflow it is with client_id or KVFLOW_CLIENT_ID"
    elif status in (401, 403):
        text += "; give the service's key as api_key or in KVFLOW_API_KEY"
    return ServiceError(status, problem.model_dump(), text)


def _workflow_path(workflow_id: str) -> str:
    if not workflow_id or workflow_id in (".", ".."):
        raise InvalidInputError(("workflow_id",), f"{workflow_id!r} cannot be an id")
    return f"/v1/workflows/{quote(workflow_id, safe='')}"


def _model(model: type[_M]) -> Callable[[int, bytes], _M]:
    return lambda _, body: model.model_validate_json(body)


def _nothing(status: int, body: bytes) -> None:
    """The status says it all."""


def _validated(model: type[_M], value: Mapping[str, Any], prefix: tuple[str | int, ...] = ()) -> _M:
    try:
        return model.model_validate(value)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        problem = f"{first['msg']}; got {first['input']!r}"
        raise InvalidInputError((*prefix, *first["loc"]), problem) from None
