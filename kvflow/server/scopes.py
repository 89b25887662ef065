"""Which paths a key of which scope opens."""

from __future__ import annotations

from typing import Final

from kvflow.server.identity import Scope

__all__ = ["allows"]

_CLIENT: Final = (
    "/v1/workflows",
    "/v1/events",
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/responses",
    "/v1/embeddings",
    "/v1/models",
    "/v1/kv_hints",
    "/v1/learned",
)
_ENGINE: Final = ("/v1/engines", "/metrics")


def allows(scope: Scope, path: str) -> bool:
    """Whether the path is for this scope.

    What is not named is for administrators alone, so that a new route cannot be left to clients by
    mistake. Paths are compared as the router sees them, that is decoded.
    """
    match scope:
        case "admin" | "open":
            return True
        case "client":
            return _under(path, _CLIENT)
        case "engine":
            return _under(path, _ENGINE)


def _under(path: str, roots: tuple[str, ...]) -> bool:
    return any(path == root or path.startswith(f"{root}/") for root in roots)
