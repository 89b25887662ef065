"""The routes that OpenAI's clients call."""

from __future__ import annotations

from typing import Annotated, Any, Final

from fastapi import APIRouter, FastAPI, Path, Request
from starlette.responses import Response

from kvflow.server.front_door.errors import is_front_door
from kvflow.server.front_door.front_door import FrontDoor
from kvflow.server.identity import RequestIdentity
from kvflow.server.problems import PROBLEM_MEDIA_TYPE

__all__ = ["document_errors", "front_door_routes"]

_ERROR_SCHEMA: Final[dict[str, Any]] = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "null"]},
            },
        }
    },
}
_BODY: Final[dict[str, Any]] = {
    "requestBody": {
        "required": True,
        "description": "As the engine takes it; `agent_hints`, `nvext`, `kv_hints` and "
        "`custom_params.kvflow` beside it are read here.",
        "content": {"application/json": {"schema": {"type": "object"}}},
    }
}
_ANSWERS: Final[dict[int | str, dict[str, Any]]] = {
    200: {
        "description": "The engine's answer, streamed as it comes if that was asked for. "
        "`X-KVFlow-Hints` tells what became of the call's hints.",
        "content": {"application/json": {}, "text/event-stream": {}},
    },
    "4XX": {
        "description": "The engine's, or ours in the same shape.",
        "content": {"application/json": {"schema": _ERROR_SCHEMA}},
    },
    "5XX": {
        "description": "The engine's; or ours: 502 if it cannot be reached, 504 if it says "
        "nothing, 503 if there is none.",
        "content": {"application/json": {"schema": _ERROR_SCHEMA}},
    },
    "default": {"description": "Whatever else the engine answers."},
}


def document_errors(app: FastAPI) -> None:
    """Let ``/openapi.json`` say of the front door's routes in which shape they answer errors."""
    documented = app.openapi

    def openapi() -> dict[str, Any]:
        document = documented()
        for path, operations in document["paths"].items():
            if is_front_door(path):
                for operation in operations.values():
                    for answer in operation["responses"].values():
                        if answer.get("content", {}).pop(PROBLEM_MEDIA_TYPE, None) is not None:
                            answer["content"]["application/json"] = {"schema": _ERROR_SCHEMA}
        return document

    app.openapi = openapi  # type: ignore[method-assign]  # FastAPI's documented way to extend it


def front_door_routes(door: FrontDoor) -> APIRouter:
    """``/v1/chat/completions`` and the others."""
    router = APIRouter(tags=["front door"], default_response_class=Response)

    async def generate(request: Request, who: RequestIdentity) -> Response:
        return await door.generation(request, who)

    async def passed_through(request: Request, who: RequestIdentity) -> Response:
        return await door.passed_through(request, who)

    for path, name in (
        ("/v1/chat/completions", "Chat completion"),
        ("/v1/completions", "Completion"),
        ("/v1/responses", "Response"),
    ):
        router.add_api_route(
            path,
            generate,
            methods=["POST"],
            summary=name,
            description="Passed to the engine; a step of the agent that the call names.",
            responses=_ANSWERS,
            openapi_extra=_BODY,
            operation_id=f"front_door{path.replace('/', '_')}",
        )
    router.add_api_route(
        "/v1/embeddings",
        passed_through,
        methods=["POST"],
        summary="Embeddings",
        description="Passed to the engine.",
        responses=_ANSWERS,
        openapi_extra=_BODY,
        operation_id="front_door_v1_embeddings",
    )

    @router.get("/v1/models", responses=_ANSWERS)
    async def list_models(request: Request, who: RequestIdentity) -> Response:
        """The engine's models."""
        return await door.passed_through(request, who)

    @router.get("/v1/models/{model:path}", responses=_ANSWERS)
    async def get_model(
        request: Request, model: Annotated[str, Path()], who: RequestIdentity
    ) -> Response:
        """One of the engine's models."""
        return await door.passed_through(request, who)

    return router
