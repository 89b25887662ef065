"""Who a request is from, as the routes see it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Final, Literal, Protocol

from fastapi import Depends, Query, Request

from kvflow.errors import ForbiddenError
from kvflow.protocol import Identifier

__all__ = [
    "IDENTITY_KEY",
    "KEYS_KEY",
    "OPEN",
    "Identity",
    "RequestIdentity",
    "Scope",
    "cache_salt_for",
    "check_client_id",
    "identity",
]

Scope = Literal["admin", "client", "engine", "open"]

IDENTITY_KEY: Final = "kvflow.identity"
"""Where the middleware that checks keys puts a request's identity in its ASGI scope."""

KEYS_KEY: Final = "kvflow.keys"
"""Where it puts the keys, as ``ActsForClients``."""


@dataclass(frozen=True, slots=True)
class Identity:
    """Whose request it is.

    Attributes:
        client_id: the client that it acts for; ``None`` if for no single one (an open service,
            an engine, an administrator who has named none).
        scope: what the key may do; ``open`` where the service has no keys.
        cache_salt: see ``cache_salt_for``. A secret: never logged nor answered.
    """

    client_id: str | None
    scope: Scope
    cache_salt: str | None = field(default=None, repr=False)

    @property
    def namespace(self) -> str:
        """In which workflow ids are unique: the client's own, or ``""``, which is shared."""
        return self.client_id or ""


class ActsForClients(Protocol):
    """What the identity of an administrator who acts for a client is found with."""

    def acting_for(self, client_id: str) -> Identity: ...

    def has_keys(self, client_id: str) -> bool: ...


OPEN: Final = Identity(None, "open")


async def identity(
    request: Request,
    client_id: Annotated[
        Identifier | None,
        Query(description="For whom an administrator acts, if that client has keys of its own."),
    ] = None,
) -> Identity:
    """FastAPI dependency: whose request it is.

    Waits for nothing; but FastAPI calls a function that is not async in a thread, which takes
    longer than all else that an event takes.

    Raises:
        ForbiddenError: a client names another one.
    """
    found: Identity = request.scope.get(IDENTITY_KEY, OPEN)
    if client_id is None:
        return found
    if found.scope == "admin":
        keys: ActsForClients = request.scope[KEYS_KEY]
        return keys.acting_for(client_id)
    if found.scope == "client":
        _must_be_own(found, client_id)
    return found


RequestIdentity = Annotated[Identity, Depends(identity)]
"""``async def route(who: RequestIdentity)``."""


def check_client_id(request: Request, who: Identity, client_id: str) -> None:
    """Check the ``client_id`` that a body names.

    Raises:
        ForbiddenError: it is another's than the client's whose key this is; or it is that of a
            client with keys, and an administrator has not said that it is meant.
    """
    if who.client_id is not None:
        _must_be_own(who, client_id)
    elif who.scope == "admin":
        keys: ActsForClients = request.scope[KEYS_KEY]
        if keys.has_keys(client_id):
            raise ForbiddenError(
                ("client_id",),
                f"client {client_id!r} has keys of its own: use one of them, or add "
                f"?client_id={client_id} to the address to act for this client",
            )


def _must_be_own(who: Identity, client_id: str) -> None:
    if client_id != who.client_id:
        raise ForbiddenError(
            ("client_id",), f"must be absent or {who.client_id!r}, whose key this is"
        )


def cache_salt_for(who: Identity) -> str | None:
    """What SGLang's ``cache_salt`` must be in requests of this client; ``None``: leave it out.

    Prefixes cached under one salt are never matched under another. So a client that has a salt
    cannot learn by timing what others have sent, nor they what it has. The front door must set it
    over whatever the client's own request says.
    """
    return who.cache_salt
