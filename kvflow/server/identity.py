"""Who a request is from, as the routes see it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Final, Literal

from fastapi import Depends, Request

__all__ = ["OPEN", "Identity", "RequestIdentity", "Scope", "cache_salt_for", "identity"]

Scope = Literal["admin", "client", "engine", "open"]

IDENTITY_KEY: Final = "kvflow.identity"
"""Where the middleware that checks keys puts a request's identity in its ASGI scope."""


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


OPEN: Final = Identity(None, "open")


def identity(request: Request) -> Identity:
    """FastAPI dependency: whose request it is."""
    found: Identity = request.scope.get(IDENTITY_KEY, OPEN)
    return found


RequestIdentity = Annotated[Identity, Depends(identity)]
"""``async def route(who: RequestIdentity)``."""


def cache_salt_for(who: Identity) -> str | None:
    """What SGLang's ``cache_salt`` must be in requests of this client; ``None``: leave it out.

    Prefixes cached under one salt are never matched under another. So a client that has a salt
    cannot learn by timing what others have sent, nor they what it has. The front door must set it
    over whatever the client's own request says.
    """
    return who.cache_salt
