"""What a key file holds. It is JSON; these models are its format, checked when it is read."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Final, Literal, Self

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, model_validator

from kvflow.protocol import Identifier

__all__ = [
    "MAX_VALID_KEYS",
    "ClientLimits",
    "ClientRecord",
    "KeyFile",
    "KeyRecord",
    "KeyScope",
    "KeyState",
    "utc_now",
]

KeyScope = Literal["client", "admin", "engine"]
KeyState = Literal["valid", "expired", "revoked"]

MAX_VALID_KEYS: Final = 2
"""Valid keys of one name at a time: the one in use and the one that takes over."""

PerSecond = Annotated[float, Field(gt=0, le=1e9, allow_inf_nan=False)]


class _Frozen(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ClientLimits(_Frozen):
    """What one client may do; ``None``: as the service's settings say."""

    requests_per_s: PerSecond | None = None
    events_per_s: PerSecond | None = None
    max_workflows: Annotated[int, Field(ge=0)] | None = None


class ClientRecord(_Frozen):
    """What is set for a client, whichever of its keys it uses."""

    isolate_cache: bool = Field(
        default=False, description="Its prefixes in the engines' caches are its own."
    )
    limits: ClientLimits = ClientLimits()


class KeyRecord(_Frozen):
    """A key, but for the key itself."""

    key_id: Annotated[str, Field(pattern=r"^[a-z2-7]{8}$")]
    name: Identifier = Field(description="Whose it is; for a client's key its client_id.")
    scope: KeyScope
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    created_at: AwareDatetime
    expires_at: AwareDatetime | None = None
    revoked_at: AwareDatetime | None = None

    def state(self, now: datetime) -> KeyState:
        """Whether it opens anything at ``now``."""
        if self.revoked_at is not None and self.revoked_at <= now:
            return "revoked"
        if self.expires_at is not None and self.expires_at <= now:
            return "expired"
        return "valid"


class KeyFile(_Frozen):
    """All keys of a service.

    ``salt_secret`` (hex) is what clients' cache salts are made with. Whoever knows it can find out
    by timing what isolated clients have cached, so it never leaves the file.
    """

    version: Literal[1] = 1
    salt_secret: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$", repr=False)]
    clients: dict[Identifier, ClientRecord] = {}
    keys: tuple[KeyRecord, ...] = ()

    @model_validator(mode="after")
    def _names_and_ids_are_unambiguous(self) -> Self:
        scopes: dict[str, KeyScope] = {}
        ids: set[str] = set()
        for index, key in enumerate(self.keys):
            if key.key_id in ids:
                raise ValueError(f"keys[{index}].key_id: {key.key_id} is there twice")
            ids.add(key.key_id)
            if scopes.setdefault(key.name, key.scope) != key.scope:
                raise ValueError(
                    f"keys[{index}].scope: {key.name!r} has keys of the scopes "
                    f"{scopes[key.name]} and {key.scope}; a name has one scope"
                )
        for name in self.clients:
            if scopes.get(name, "client") != "client":
                raise ValueError(f"clients.{name}: its keys are of the scope {scopes[name]}")
        return self

    def of(self, name: str) -> list[KeyRecord]:
        """The keys of this name, oldest first."""
        return sorted((key for key in self.keys if key.name == name), key=lambda k: k.created_at)


def utc_now() -> datetime:
    """The time by which keys expire."""
    return datetime.now(UTC)
