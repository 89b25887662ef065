"""API keys: the file they are kept in, what is done to it, and who a key says one is."""

from kvflow.server.keys.base import (
    ClientLimits,
    ClientRecord,
    KeyFile,
    KeyRecord,
    KeyScope,
    utc_now,
)
from kvflow.server.keys.changes import NewKey, configure, create_key, revoke, rotate
from kvflow.server.keys.file import change_key_file, read_key_file
from kvflow.server.keys.ring import Authenticated, KeyRing, Refusal, RefusalReason

__all__ = [
    "Authenticated",
    "ClientLimits",
    "ClientRecord",
    "KeyFile",
    "KeyRecord",
    "KeyRing",
    "KeyScope",
    "NewKey",
    "Refusal",
    "RefusalReason",
    "change_key_file",
    "configure",
    "create_key",
    "read_key_file",
    "revoke",
    "rotate",
    "utc_now",
]
