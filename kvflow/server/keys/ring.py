"""The keys a running service goes by: who a key says one is, and the file's changes."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Set
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Final, Literal

from kvflow.errors import EnvironmentProblemError
from kvflow.server.identity import Identity
from kvflow.server.keys.base import ClientLimits, ClientRecord, KeyRecord, utc_now
from kvflow.server.keys.file import read_key_file
from kvflow.server.keys.tokens import cache_salt, digest, key_id_of, same_digest

__all__ = ["Authenticated", "KeyRing", "Refusal", "RefusalReason"]

RefusalReason = Literal["missing", "unknown", "expired", "revoked"]

_LOOK_EVERY_S: Final = 1.0
_NO_DIGEST: Final = "0" * 64

logger = logging.getLogger("kvflow.server.keys")

Seen = tuple[int, int, int, int]


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a key opens nothing. ``key_id`` is of a key that was right once."""

    reason: RefusalReason
    key_id: str | None = None


@dataclass(frozen=True, slots=True)
class Authenticated:
    """A key that is right. ``key_id`` is ``None`` for the one of ``KVFLOW_API_KEY``."""

    identity: Identity
    key_id: str | None


class KeyRing:
    """All keys of the service: the one admin key of its settings, and those of a key file.

    The file is looked at once a second at most, when a request comes, and read again if it has
    changed. One that is broken or gone changes nothing: the last good one goes on to hold, and the
    log says so once. A key's end is noticed at its very time.

    Args:
        api_key: the one admin key, of ``KVFLOW_API_KEY``.
        path: the key file.
        now: the time of day, by which keys expire.
        clock: seconds, for how often the file is looked at.

    Raises:
        EnvironmentProblemError: the key file cannot be used at the start.
    """

    def __init__(
        self,
        api_key: str | None,
        path: Path | None,
        *,
        now: Callable[[], datetime] = utc_now,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._admin_digest = None if api_key is None else digest(api_key)
        self._path = path
        self._now = now
        self._clock = clock
        self._records: dict[str, KeyRecord] = {}
        self._clients: dict[str, ClientRecord] = {}
        self._salts: dict[str, str] = {}
        self._seen: Seen | None = None
        self._complaint: str | None = None
        self._look_at_s = clock() + _LOOK_EVERY_S
        if path is not None:
            self._load(path, _seen(path))

    @property
    def guards(self) -> bool:
        """Whether requests need a key at all."""
        return self._admin_digest is not None or self._path is not None

    def authenticate(self, key: str | None, *, only_file: bool = False) -> Authenticated | Refusal:
        """Who has this key; with ``only_file`` the one of the settings opens nothing.

        Every comparison takes the same time whatever the key.
        """
        self._look_again()
        if not key:
            return Refusal("missing")
        given = digest(key)
        key_id = key_id_of(key)
        record = self._records.get(key_id) if key_id is not None else None
        in_file = same_digest(given, _NO_DIGEST if record is None else record.sha256)
        if record is not None and in_file:
            state = record.state(self._now())
            if state != "valid":
                return Refusal(state, record.key_id)
            return Authenticated(self._identity(record), record.key_id)
        admin = self._admin_digest
        if admin is not None and not only_file and same_digest(given, admin):
            return Authenticated(Identity(None, "admin"), None)
        return Refusal("unknown")

    def still_valid(self, who: Authenticated) -> bool:
        """Whether the key that was right is so now. For responses that last."""
        if who.key_id is None:
            return True
        self._look_again()
        record = self._records.get(who.key_id)
        return record is not None and record.state(self._now()) == "valid"

    def acting_for(self, client_id: str) -> Identity:
        """The identity of an administrator who acts for this client.

        One who names a client without keys acts for none: such a client's workflows are in the
        namespace that all without keys share.
        """
        if not self.has_keys(client_id):
            return Identity(None, "admin")
        return Identity(client_id, "admin", self._salts.get(client_id))

    def has_keys(self, client_id: str) -> bool:
        """Whether this client has keys, or had: a name goes on to mean the same."""
        return client_id in self._clients

    def clients(self) -> Set[str]:
        """All clients that have keys, or had."""
        self._look_again()
        return self._clients.keys()

    def limits(self, client_id: str) -> ClientLimits:
        """What is set for this client."""
        record = self._clients.get(client_id)
        return ClientLimits() if record is None else record.limits

    def _identity(self, record: KeyRecord) -> Identity:
        if record.scope != "client":
            return Identity(None, record.scope)
        return Identity(record.name, "client", self._salts.get(record.name))

    def _look_again(self) -> None:
        if self._path is None or self._clock() < self._look_at_s:
            return
        self._look_at_s = self._clock() + _LOOK_EVERY_S
        seen = _seen(self._path)
        if seen == self._seen and seen is not None:
            return
        try:
            self._load(self._path, seen)
        except EnvironmentProblemError as problem:
            # Not read again until it changes; a file that is gone is looked for again.
            self._seen = seen
            if str(problem) != self._complaint:
                logger.error("%s; the keys as they were before hold on", problem)
            self._complaint = str(problem)
            return
        self._complaint = None
        logger.info("read the key file %s again: %s", self._path, self._summary())

    def _load(self, path: Path, seen: Seen | None) -> None:
        content = read_key_file(path)
        self._records = {key.key_id: key for key in content.keys}
        self._clients = {
            key.name: ClientRecord() for key in content.keys if key.scope == "client"
        } | content.clients
        self._salts = {
            client_id: cache_salt(content.salt_secret, client_id)
            for client_id, record in self._clients.items()
            if record.isolate_cache
        }
        self._seen = seen

    def _summary(self) -> str:
        now = self._now()
        valid = sum(record.state(now) == "valid" for record in self._records.values())
        return f"{valid} valid key(s), {len(self._clients)} client(s)"


def _seen(path: Path) -> Seen | None:
    """What tells one state of a file from another; taken before it is read, so none is missed."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_ino, status.st_size, status.st_mtime_ns, status.st_mode
