"""OpenAI's routes in front of an engine: workflows without the SDK get the benefit too."""

from kvflow.server.front_door.build import build_front_door
from kvflow.server.front_door.calls import Call, UndeclaredCalls
from kvflow.server.front_door.errors import AnswerAsOpenAI
from kvflow.server.front_door.forwarding import CallEnd
from kvflow.server.front_door.front_door import FrontDoor
from kvflow.server.front_door.routes import document_errors, front_door_routes

__all__ = [
    "AnswerAsOpenAI",
    "Call",
    "CallEnd",
    "FrontDoor",
    "UndeclaredCalls",
    "build_front_door",
    "document_errors",
    "front_door_routes",
]
