"""Every error answer the service gives, as RFC 9457 problem details."""

from __future__ import annotations

import json
import logging
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.responses import Response

from kvflow.errors import (
    AgentNotFoundError,
    ConflictError,
    FamilyNotFoundError,
    ForbiddenError,
    GraphError,
    InvalidInputError,
    KVFlowError,
    NotFoundError,
    QuotaError,
    RateLimitedError,
    StepNotRunningError,
    WorkflowConflictError,
    WorkflowNotFoundError,
    field_path,
)
from kvflow.protocol import FieldProblem, Problem
from kvflow.server.bodies import BODY_TAGS
from kvflow.server.event_bus import TooManyReadersError
from kvflow.server.rates import retry_after
from kvflow.server.request_log import about, id_headers
from kvflow.server.secure_headers import SECURE_HEADERS
from kvflow.server.store import StoreFullError, StoreUnavailableError
from kvflow.server.workflows import EventRefusedError

__all__ = [
    "PROBLEM_MEDIA_TYPE",
    "install_problem_handlers",
    "problem_for",
    "problem_for_status",
    "problem_kind",
    "problem_response",
]

PROBLEM_MEDIA_TYPE: Final = "application/problem+json"
_MAX_FIELD_PROBLEMS: Final = 200

logger = logging.getLogger("kvflow.server")


@dataclass(frozen=True, slots=True)
class ProblemKind:
    """One type of problem; ``name`` ends its URI ``urn:kvflow:problem:<name>``."""

    name: str
    status: int
    title: str


# An error is answered by the entry of its class, or else of its nearest base.
_BY_ERROR: Final[Mapping[type[KVFlowError], ProblemKind]] = {
    GraphError: ProblemKind("invalid-graph", 422, "The graph cannot work"),
    InvalidInputError: ProblemKind("invalid-input", 422, "A value is wrong"),
    FamilyNotFoundError: ProblemKind("family-not-found", 404, "No such family of workflows"),
    WorkflowNotFoundError: ProblemKind("workflow-not-found", 404, "No such workflow"),
    AgentNotFoundError: ProblemKind("agent-not-found", 404, "No such agent in this workflow"),
    NotFoundError: ProblemKind("not-found", 404, "Not found"),
    WorkflowConflictError: ProblemKind(
        "workflow-exists", 409, "A workflow with this id exists with other content"
    ),
    StepNotRunningError: ProblemKind("step-not-running", 409, "The step is not running"),
    ConflictError: ProblemKind("conflict", 409, "Does not fit the present state"),
    StoreFullError: ProblemKind("too-many-workflows", 503, "Too many live workflows"),
    StoreUnavailableError: ProblemKind("store-unavailable", 503, "Workflows cannot be stored now"),
    TooManyReadersError: ProblemKind("too-many-readers", 503, "Too many readers of events"),
    ForbiddenError: ProblemKind("forbidden", 403, "Not for this API key"),
    RateLimitedError: ProblemKind("rate-limited", 429, "Too much in too short a time"),
    QuotaError: ProblemKind("quota-reached", 429, "As many as this client may have"),
    KVFlowError: ProblemKind("internal-error", 500, "The service failed"),
}

_BY_STATUS: Final[Mapping[int, ProblemKind]] = {
    kind.status: kind
    for kind in (
        ProblemKind("malformed-body", 400, "The body is not JSON"),
        ProblemKind("unauthorized", 401, "An API key is needed"),
        ProblemKind("forbidden", 403, "Not for this API key"),
        ProblemKind("no-such-route", 404, "No such route"),
        ProblemKind("method-not-allowed", 405, "This route does not take this method"),
        ProblemKind("body-too-large", 413, "The body is too large"),
        ProblemKind("not-json", 415, "The body must be JSON"),
        ProblemKind("invalid-input", 422, "A value is wrong"),
        ProblemKind("rate-limited", 429, "Too much in too short a time"),
        ProblemKind("head-too-large", 431, "The headers are too large"),
        ProblemKind("internal-error", 500, "The service failed"),
        ProblemKind("not-ready", 503, "The service is not ready"),
    )
}

# What pydantic says less helpfully, by its error type.
_WORDS: Final[Mapping[str, str]] = {
    "missing": "is required",
    "extra_forbidden": "is not a field of this object; check its spelling",
    "string_pattern_mismatch": "must start with a letter or digit and go on with letters, "
    "digits and . _ : @ -",
    "string_unicode": "must be text of valid Unicode characters",
    "string_type": "must be a string",
    "list_type": "must be a list",
    "model_attributes_type": "must be a JSON object",
    "too_short": "must have at least {min_length} item(s), not {actual_length}",
    "too_long": "must have at most {max_length} items",
}


def problem_kind(error: KVFlowError) -> ProblemKind:
    """The entry of the table for this error."""
    return next(_BY_ERROR[cls] for cls in type(error).__mro__ if cls in _BY_ERROR)


def problem_response(
    status: int,
    detail: str,
    *,
    kind: ProblemKind | None = None,
    errors: Sequence[FieldProblem] = (),
    headers: Mapping[str, str] | None = None,
    **members: Any,
) -> Response:
    """A problem details answer; ``members`` are members beyond the standard ones."""
    kind = kind or _BY_STATUS.get(status) or ProblemKind("http-error", status, "HTTP error")
    problem = Problem(
        type=f"urn:kvflow:problem:{kind.name}",
        title=kind.title,
        status=status,
        detail=detail,
        errors=list(errors),
        **members,
    )
    return Response(
        # ASCII, as what is quoted from a request may be text that UTF-8 cannot encode.
        json.dumps(problem.model_dump()).encode("ascii"),
        status_code=status,
        headers=headers,
        media_type=PROBLEM_MEDIA_TYPE,
    )


def install_problem_handlers(app: FastAPI) -> None:
    """Answer every error of ``app`` with problem details."""
    app.add_exception_handler(KVFlowError, _kvflow_error)
    app.add_exception_handler(RequestValidationError, _validation_error)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(Exception, _unexpected_error)


async def _kvflow_error(request: Request, exc: Exception) -> Response:
    assert isinstance(exc, KVFlowError)  # noqa: S101 - for the type checker
    prefix: tuple[str | int, ...] = ()
    error = exc
    if isinstance(exc, EventRefusedError):
        prefix, error = (exc.index,), exc.cause
    kind = problem_kind(error)
    if kind.status == 500:
        return await _unexpected_error(request, exc)
    errors: list[FieldProblem] = []
    members: dict[str, Any] = {}
    headers: dict[str, str] | None = None
    match error:
        case ForbiddenError():
            errors = [_field(error.field, error.problem)]
        case RateLimitedError():
            headers = retry_after(error.wait_s)
        case StoreUnavailableError():
            headers = {"Retry-After": "1"}
        case InvalidInputError():
            errors = [_field(prefix + error.field, error.problem)]
            if isinstance(error, GraphError) and error.agent_ids:
                members["agent_ids"] = error.agent_ids[:_MAX_FIELD_PROBLEMS]
        case AgentNotFoundError():
            errors = [_field((*prefix, "agent_id"), str(error))]
            members["agent_id"] = error.agent_id
        case StepNotRunningError():
            field = "agent_id" if error.step_id is None else "step_id"
            errors = [_field((*prefix, field), str(error))]
            members |= {"agent_id": error.agent_id, "step_id": error.step_id}
        case WorkflowConflictError():
            errors = [
                _field((name,), "differs from the live workflow's") for name in error.differing
            ]
            members["workflow_id"] = error.workflow_id
        case WorkflowNotFoundError():
            members["workflow_id"] = error.workflow_id
        case ConflictError():
            errors = [_field((*prefix, "step_id"), str(error))]
    if prefix:
        members["event_index"] = prefix[0]
    detail = str(error)
    if prefix:
        detail = f"event {prefix[0]} of the list cannot be applied, so none was: {detail}"
    return problem_response(
        kind.status, detail, kind=kind, errors=errors, headers=headers, **members
    )


async def _validation_error(request: Request, exc: Exception) -> Response:
    assert isinstance(exc, RequestValidationError)  # noqa: S101 - for the type checker
    found = exc.errors()
    if found[0]["type"] == "json_invalid":
        reason = found[0]["ctx"]["error"]
        return problem_response(
            400, f"the body is not JSON: {reason} at character {found[0]['loc'][-1]}"
        )
    errors = [_field(_location(one["loc"]), _words(one)) for one in found[:_MAX_FIELD_PROBLEMS]]
    count = "1 value is wrong" if len(found) == 1 else f"{len(found)} values are wrong"
    if len(found) > len(errors):
        count += f"; the first {len(errors)} are listed"
    detail = f"{count}: {errors[0].field}: {errors[0].problem}"
    return problem_response(422, detail, errors=errors)


async def _http_error(request: Request, exc: Exception) -> Response:
    assert isinstance(exc, HTTPException)  # noqa: S101 - for the type checker
    detail, headers = exc.detail, exc.headers
    if exc.status_code == 404:
        detail = f"there is nothing at {request.url.path}; /openapi.json lists the routes"
    elif exc.status_code == 405:
        allowed = _allowed_methods(request, exc)
        headers = {"Allow": allowed}
        detail = f"{request.url.path} takes {allowed}, not {request.method}"
    elif exc.status_code == 400:
        detail = "the body cannot be read as JSON: it must be UTF-8, not nested too deeply"
    return problem_response(exc.status_code, detail, headers=headers)


async def _unexpected_error(request: Request, exc: Exception) -> Response:
    incident = uuid.uuid4().urn
    # What answers here is outside of all middleware, unlike the request that failed.
    with about(request.scope):
        logger.error(
            "%s %s failed, incident %s", request.method, request.url.path, incident, exc_info=exc
        )
    return problem_response(
        500,
        f"an internal error; the service's log has it as {incident}",
        headers=SECURE_HEADERS | id_headers(request.scope),
        instance=incident,
    )


def _allowed_methods(request: Request, exc: HTTPException) -> str:
    # The router itself knows only the methods of the first route with this path.
    # It writes "{name:path}" where the document has "{name}".
    path = getattr(request.scope.get("route"), "path_format", None)
    methods = request.app.openapi()["paths"].get(path, {})
    return ", ".join(sorted(method.upper() for method in methods)) or Headers(exc.headers)["allow"]


def _field(path: Sequence[str | int], problem: str) -> FieldProblem:
    return FieldProblem(field=field_path(path), problem=problem)


def _location(loc: Sequence[str | int]) -> tuple[str | int, ...]:
    where, *path = loc
    if where == "body":
        return tuple(path[1:] if path and path[0] in BODY_TAGS else path)
    return tuple(loc)


def _words(error: Mapping[str, Any]) -> str:
    words: str = error["msg"]
    if error["type"] in _WORDS:
        words = _WORDS[error["type"]].format_map(error.get("ctx", {}))
    given = error.get("input")
    if error["type"] not in ("missing", "extra_forbidden") and isinstance(
        given, str | int | float | bool | None
    ):
        text = "null" if given is None else repr(given)
        words += f"; got {text[:80]}{'...' if len(text) > 80 else ''}"
    return words


async def problem_for(error: KVFlowError | ValidationError, path: str) -> Problem:
    """The problem document that a request with this error would get; ``path`` is for the log."""
    request = Request({"type": "http", "method": "MQTT", "path": path, "headers": []})
    if isinstance(error, ValidationError):
        found = [{**one, "loc": ("body", *one["loc"])} for one in error.errors(include_url=False)]
        answer = await _validation_error(request, RequestValidationError(found))
    else:
        answer = await _kvflow_error(request, error)
    return Problem.model_validate_json(bytes(answer.body))


def problem_for_status(status: int, detail: str) -> Problem:
    """The problem document of a status that no error of ours stands for."""
    answer = problem_response(status, detail)
    return Problem.model_validate_json(bytes(answer.body))
