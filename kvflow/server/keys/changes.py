"""What can be done to a key file: each takes one and gives the one after. No I/O, no clock."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta

from kvflow.errors import InvalidInputError
from kvflow.server.keys.base import MAX_VALID_KEYS, ClientRecord, KeyFile, KeyRecord, KeyScope
from kvflow.server.keys.tokens import digest, make_key

__all__ = ["NewKey", "configure", "create_key", "revoke", "rotate"]


@dataclass(frozen=True, slots=True)
class NewKey:
    """A key that was just made: the only time that it is seen."""

    key: str
    record: KeyRecord

    def __repr__(self) -> str:
        return f"NewKey({self.record.key_id})"


def create_key(
    content: KeyFile,
    name: str,
    scope: KeyScope,
    now: datetime,
    *,
    expires_at: datetime | None = None,
    make: Callable[[], tuple[str, str]] = make_key,
) -> tuple[KeyFile, NewKey]:
    """Add a key for ``name``.

    Raises:
        InvalidInputError: the name has keys of another scope, or two valid ones already.
    """
    own = content.of(name)
    if own and own[0].scope != scope:
        raise InvalidInputError(
            ("name",),
            f"{name!r} has keys of the scope {own[0].scope}; a name has one scope, so choose "
            f"another name for a key of the scope {scope}",
        )
    if name in content.clients and scope != "client":
        raise InvalidInputError(("name",), f"{name!r} is a client; choose another name")
    valid = [key for key in own if key.state(now) == "valid"]
    if len(valid) >= MAX_VALID_KEYS:
        raise InvalidInputError(
            ("name",),
            f"{name!r} has {len(valid)} valid keys ({', '.join(key.key_id for key in valid)}), "
            "the most it may; revoke the one that is no longer in use first",
        )
    taken = {key.key_id for key in content.keys}
    key, key_id = make()
    while key_id in taken:
        key, key_id = make()
    record = KeyRecord.model_validate(
        {
            "key_id": key_id,
            "name": name,
            "scope": scope,
            "sha256": digest(key),
            "created_at": now,
            "expires_at": expires_at,
        }
    )
    clients = dict(content.clients)
    if scope == "client":
        clients.setdefault(name, ClientRecord())
    changed = content.model_copy(update={"keys": (*content.keys, record), "clients": clients})
    return changed, NewKey(key, record)


def rotate(
    content: KeyFile,
    name: str,
    now: datetime,
    *,
    grace: timedelta,
    expires_at: datetime | None = None,
    make: Callable[[], tuple[str, str]] = make_key,
) -> tuple[KeyFile, NewKey]:
    """Make a new key for ``name``; its valid one goes on for ``grace``, and no longer.

    Raises:
        InvalidInputError: the name has no key, or two valid ones already.
    """
    own = content.of(name)
    if not own:
        raise InvalidInputError(("name",), _unknown(content, name))
    changed, new = create_key(content, name, own[0].scope, now, expires_at=expires_at, make=make)
    ends = now + grace

    def shortened(key: KeyRecord) -> KeyRecord:
        if key.name != name or key.key_id == new.record.key_id or key.state(now) != "valid":
            return key
        earlier = ends if key.expires_at is None else min(ends, key.expires_at)
        return key.model_copy(update={"expires_at": earlier})

    return changed.model_copy(update={"keys": tuple(map(shortened, changed.keys))}), new


def revoke(content: KeyFile, name_or_id: str, now: datetime) -> tuple[KeyFile, list[KeyRecord]]:
    """End the key with this key_id, or all keys of this name, at once; those that were valid.

    The records stay, so that the log can say of an old key whose it was.

    Raises:
        InvalidInputError: there is no such key.
    """
    meant = [key for key in content.keys if name_or_id in (key.key_id, key.name)]
    if not meant:
        raise InvalidInputError(("key",), _unknown(content, name_or_id))
    ended = [key for key in meant if key.state(now) == "valid"]
    ids = {key.key_id for key in ended}
    keys = tuple(
        key.model_copy(update={"revoked_at": now}) if key.key_id in ids else key
        for key in content.keys
    )
    return content.model_copy(update={"keys": keys}), ended


def configure(content: KeyFile, client_id: str, record: ClientRecord) -> KeyFile:
    """Set what holds for a client.

    Raises:
        InvalidInputError: there is no such client.
    """
    if client_id not in content.clients:
        raise InvalidInputError(
            ("name",), f"there is no client {client_id!r}; `kvflow keys create` makes one"
        )
    return content.model_copy(update={"clients": {**content.clients, client_id: record}})


def _unknown(content: KeyFile, name: str) -> str:
    known = ", ".join(sorted({key.name for key in content.keys})) or "none"
    return f"there is no key of the name or key_id {name!r}; names with keys: {known}"
