"""What became of a call's hints, told in the response header ``X-KVFlow-Hints``."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Final

__all__ = ["HINTS_HEADER", "Account"]

HINTS_HEADER: Final = "x-kvflow-hints"
_MAX_CHARS: Final = 2048
_MAX_REASON_CHARS: Final = 120
_MAX_IGNORED: Final = 12


@dataclass(slots=True)
class Account:
    """Filled in while a call is prepared.

    Attributes:
        engine: what kind of engine the call goes to.
        used: field of the hints -> where it was found.
        ignored: field -> why it was not used.
        sent: field of the engine's request -> what was put there, shortened to what matters.
        steps: who reports the call's steps, or why nobody does.
    """

    engine: str = "unknown"
    used: dict[str, str] = field(default_factory=dict)
    ignored: dict[str, str] = field(default_factory=dict)
    sent: dict[str, str | int] = field(default_factory=dict)
    steps: str = ""

    def ignore(self, name: str, reason: str) -> None:
        """Note why a hint was not used. The first ones only: a client can send any number."""
        if len(self.ignored) < _MAX_IGNORED:
            self.ignored.setdefault(name[:_MAX_REASON_CHARS], reason[:_MAX_REASON_CHARS])

    @property
    def says_anything(self) -> bool:
        """Whether the call brought a hint, or was given something."""
        return bool(self.used or self.ignored or self.sent)

    def header(self) -> bytes:
        """The header's value: a JSON object on one line of ASCII, at most 2 KiB."""
        fields: dict[str, object] = {"engine": self.engine}
        for name in ("used", "ignored", "sent", "steps"):
            if value := getattr(self, name):
                fields[name] = value
        text = json.dumps(fields, separators=(",", ":"))
        if len(text) > _MAX_CHARS:
            # What was ignored is the only part whose length the client decides.
            fields["ignored"] = {"...": f"{len(self.ignored)} hints, too many to list"}
            text = json.dumps(fields, separators=(",", ":"))
        return text.encode("ascii")
