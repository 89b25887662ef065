"""The topics, below one prefix. ``docs/mqtt.md`` describes them for users."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal, cast, get_args

from pydantic import TypeAdapter, ValidationError

from kvflow.protocol import Identifier

__all__ = ["Address", "Command", "Topics", "is_identifier"]

Command = Literal["create", "events", "close"]
_COMMANDS: Final[frozenset[str]] = frozenset(get_args(Command))
_IDENTIFIER: Final = TypeAdapter[str](Identifier)


@dataclass(frozen=True, slots=True)
class Address:
    """What a message to the service is about."""

    client_id: str
    workflow_id: str
    command: Command


class Topics:
    """Makes and reads topics. Identifiers hold no ``/``, ``+`` or ``#``, so nothing is escaped."""

    def __init__(self, prefix: str) -> None:
        self.prefix = prefix
        self.service_status = f"{prefix}/service/status"
        self.all_commands = [f"{prefix}/clients/+/workflows/+/{one}" for one in get_args(Command)]
        # What a service that is gone may have left behind.
        self.all_retained = [
            f"{prefix}/clients/+/workflows/+/plan",
            f"{prefix}/engines/+/status",
            f"{prefix}/engines/+/report",
        ]

    def plan(self, client_id: str, workflow_id: str) -> str:
        """Steps-to-execution of a workflow; retained, and cleared when it ends."""
        return f"{self.prefix}/clients/{client_id}/workflows/{workflow_id}/plan"

    def errors(self, client_id: str) -> str:
        """Problem documents about what a client sent."""
        return f"{self.prefix}/clients/{client_id}/errors"

    def calls(self, client_id: str) -> str:
        """Calls through the front door, with what the cache had of each."""
        return f"{self.prefix}/clients/{client_id}/calls"

    def engine_status(self, engine_id: str) -> str:
        """Retained while the engine is connected."""
        return f"{self.prefix}/engines/{engine_id}/status"

    def engine_report(self, engine_id: str) -> str:
        """The engine's last report of its cache; retained while it is connected."""
        return f"{self.prefix}/engines/{engine_id}/report"

    def is_command(self, topic: str) -> bool:
        """Whether it is a message to the service, be its identifiers right or wrong."""
        return topic.rpartition("/")[2] in _COMMANDS

    def client_of(self, topic: str) -> str | None:
        """The client of a topic below ``clients/``, if it is an identifier."""
        levels = topic.removeprefix(f"{self.prefix}/").split("/")
        return levels[1] if len(levels) > 1 and is_identifier(levels[1]) else None

    def address(self, topic: str) -> Address | None:
        """Whose message this is and about what; ``None`` if an identifier is wrong."""
        levels = topic.removeprefix(f"{self.prefix}/").split("/")
        if len(levels) != 5 or levels[4] not in _COMMANDS:
            return None
        _, client_id, _, workflow_id, command = levels
        if not (is_identifier(client_id) and is_identifier(workflow_id)):
            return None
        return Address(client_id, workflow_id, cast("Command", command))


def is_identifier(text: str) -> bool:
    """Whether this can be an id on the wire, and so a level of a topic."""
    try:
        _IDENTIFIER.validate_python(text)
    except ValidationError:
        return False
    return True
