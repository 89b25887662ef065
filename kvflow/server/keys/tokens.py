"""Keys themselves: how they look, how they are made, and what is kept of them.

A key is ``kvf_<key_id>_<secret>``. The prefix lets secret scanners find a key that has leaked, the
key_id finds its record without trying all of them, and the secret is 256 random bits. Because it is
random, one SHA-256 is as good as a slow password hash: there is nothing to guess from, and a slow
hash would be paid by every request.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
import secrets
from typing import Final

__all__ = ["cache_salt", "digest", "key_id_of", "make_key", "make_salt_secret", "same_digest"]

_KEY: Final = re.compile(r"^kvf_([a-z2-7]{8})_[A-Za-z0-9_-]{43}$")


def make_key() -> tuple[str, str]:
    """A new ``(key, key_id)``."""
    key_id = base64.b32encode(secrets.token_bytes(5)).decode("ascii").lower()
    return f"kvf_{key_id}_{secrets.token_urlsafe(32)}", key_id


def key_id_of(key: str) -> str | None:
    """The key_id in what looks like a key of ours. It is not secret."""
    match = _KEY.match(key)
    return match[1] if match else None


def digest(key: str) -> str:
    """What is kept of a key."""
    return hashlib.sha256(key.encode()).hexdigest()


def same_digest(one: str, other: str) -> bool:
    """Whether two digests are equal, in a time that does not say where they differ."""
    return hmac.compare_digest(one, other)


def make_salt_secret() -> str:
    """A new secret for ``cache_salt``, as hex."""
    return secrets.token_hex(32)


def cache_salt(salt_secret: str, client_id: str) -> str:
    """A client's salt: the same for all its keys, and not to be guessed without the secret."""
    message = b"kvflow-cache-salt-v1\0" + client_id.encode()
    return hmac.new(bytes.fromhex(salt_secret), message, hashlib.sha256).hexdigest()
