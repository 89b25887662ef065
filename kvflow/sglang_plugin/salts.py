"""Under which ``cache_salt`` each workflow's requests come, so that only its own KV is weighed.

SGLang's tree matches prefixes under the same salt only, so an agent whose calls come under many
salts (one for each user, say) has as many copies of its prefix. A workflow reads one of them.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any, Final, NamedTuple

from kvflow.sglang_plugin.control import WorkflowKey

__all__ = ["Namespace", "WorkflowSalts", "scopes_of"]


class Namespace(NamedTuple):
    """What else than tokens has to be equal for KV to be shared.

    SGLang's ``extra_key`` may differ from agent to agent (LoRA adapters); the salt says whose the
    request is. Up to SGLang 0.5.17 the salt is a part of the extra key.
    """

    extra_key: Any
    salt: str | None


_ALL: Final = "all"


class WorkflowSalts:
    """The salt of each live workflow, once a request of it has come.

    A scope is a client's id together with a salt; the id alone stands for all salts. It is that of
    workflows of which no request has come yet, and of those that have used more than one salt.
    """

    __slots__ = ("_salts",)

    def __init__(self) -> None:
        self._salts: dict[WorkflowKey, tuple[str | None] | str] = {}

    def scope_with(self, key: WorkflowKey, salt: str | None) -> str:
        """What the scope will be after a request under this salt."""
        known = self._salts.get(key)
        return _scope(key[0], salt) if known in (None, (salt,)) else key[0]

    def seen(self, key: WorkflowKey, salt: str | None) -> None:
        """A request of the workflow has come."""
        self._salts[key] = (salt,) if self._salts.get(key) in (None, (salt,)) else _ALL

    def forget(self, key: WorkflowKey) -> None:
        """The workflow is not live any more."""
        self._salts.pop(key, None)

    def scope(self, key: WorkflowKey) -> str:
        """Where the workflow's steps count."""
        known = self._salts.get(key)
        return _scope(key[0], known[0]) if isinstance(known, tuple) else key[0]

    def reads(self, key: WorkflowKey, namespace: Hashable) -> bool:
        """Whether the workflow's requests may find what is cached in this namespace."""
        return self.scope(key) in scopes_of(key[0], namespace)


def scopes_of(client_id: str, namespace: Hashable) -> tuple[str, str]:
    """The scopes whose steps count for a client's prefixes in this namespace."""
    salt = namespace.salt if isinstance(namespace, Namespace) else None
    return client_id, _scope(client_id, salt)


def _scope(client_id: str, salt: str | None) -> str:
    # Neither is in an identifier, so scopes are never taken for each other.
    return f"{client_id}\n" if salt is None else f"{client_id}\r{salt}"
