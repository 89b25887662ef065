"""The OpenAPI document: the service's own error answers and its key, told truthfully."""

from __future__ import annotations

from typing import Any, Final

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from kvflow.protocol import Delta, Heartbeat, Problem, Snapshot
from kvflow.server.event_models import EventsEnd, ServiceEvent
from kvflow.server.problems import PROBLEM_MEDIA_TYPE

__all__ = ["EVENT_STREAM_DOC", "SSE_ITEM", "problems", "set_openapi"]

_REF: Final = "#/components/schemas/{model}"
_DESCRIPTIONS: Final = {
    400: "The body is not JSON.",
    401: "The API key is missing or wrong.",
    403: "This API key is not for that.",
    404: "There is no such workflow, or it has no such agent.",
    409: "Does not fit the present state.",
    413: "The body is too large.",
    415: "The body is not declared as JSON.",
    422: "A value is wrong; every wrong field is named.",
    429: "This client does more than it may, or has as much as it may have.",
    503: "The service cannot do it now.",
}

SSE_ITEM: Final[dict[str, Any]] = {
    "type": "object",
    "properties": {
        "id": {"type": "string"},
        "event": {"type": "string"},
        "data": {"type": "string", "contentMediaType": "application/json"},
    },
    "required": ["id", "event", "data"],
}
"""One server-sent event, as OpenAPI describes a stream's items."""

EVENT_STREAM_DOC: Final[dict[str, Any]] = {
    "description": "Server-sent events `snapshot`, `delta` and `heartbeat`. `id` is the sequence "
    "number: 0 for the snapshot, then one more with every message. `data` is a JSON object: "
    "`Snapshot`, `Delta` or `Heartbeat`.",
    "content": {"text/event-stream": {"itemSchema": SSE_ITEM}},
}


def problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """``responses=`` of a route that answers these statuses with problem details."""
    schema = {"$ref": _REF.format(model="Problem")}
    return {
        status: {
            "description": _DESCRIPTIONS[status],
            "content": {PROBLEM_MEDIA_TYPE: {"schema": schema}},
        }
        for status in statuses
    }


def set_openapi(app: FastAPI, *, open_paths: frozenset[str], needs_key: bool) -> None:
    """Make ``/openapi.json`` complete. The document is made at its first use."""

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            document = get_openapi(
                title=app.title,
                version=app.version,
                description=app.description,
                routes=app.routes,
                tags=app.openapi_tags,
            )
            _add_schemas(document)
            if needs_key:
                _add_key(document, open_paths)
            app.openapi_schema = document
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]  # FastAPI's documented way to extend it


def _add_schemas(document: dict[str, Any]) -> None:
    schemas = document.setdefault("components", {}).setdefault("schemas", {})
    for model in (Problem, Snapshot, Delta, Heartbeat, ServiceEvent, EventsEnd):
        schema = model.model_json_schema(ref_template=_REF, mode="serialization")
        schemas.update(schema.pop("$defs", {}))
        schemas[model.__name__] = schema
    # FastAPI's own form of a validation error, which this service never answers.
    for name in ("HTTPValidationError", "ValidationError"):
        schemas.pop(name, None)
    for operations in document["paths"].values():
        for operation in operations.values():
            stream = operation["responses"].get("200", {}).get("content", {})
            # FastAPI takes a stream as a whole for a text, too.
            stream.get("text/event-stream", {}).pop("schema", None)
            answer = operation["responses"].get("422", {})
            if "application/json" in answer.get("content", {}):
                operation["responses"] |= {"422": problems(422)[422]}


def _add_key(document: dict[str, Any], open_paths: frozenset[str]) -> None:
    document["components"]["securitySchemes"] = {"api_key": {"type": "http", "scheme": "bearer"}}
    refusal = {str(status): answer for status, answer in problems(401, 403, 429).items()}
    for path, operations in document["paths"].items():
        if path in open_paths:
            continue
        for operation in operations.values():
            operation["security"] = [{"api_key": []}]
            operation["responses"] |= refusal
