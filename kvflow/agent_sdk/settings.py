"""Where the KVFlow service is and how to talk to it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import Final
from urllib.parse import SplitResult, urlsplit

from pydantic import TypeAdapter, ValidationError

from kvflow.errors import InvalidInputError
from kvflow.protocol import DEFAULT_CLIENT_ID, Identifier

__all__ = ["DEFAULT_SERVICE_URL", "DEFAULT_TIMEOUT_S", "ClientSettings", "checked_identifier"]

DEFAULT_SERVICE_URL: Final = "http://127.0.0.1:8100"
DEFAULT_TIMEOUT_S: Final = 2.0

_IDENTIFIER: Final = TypeAdapter[str](Identifier)


@dataclass(frozen=True, slots=True)
class ClientSettings:
    """Address, key and identity of a client of the service. Hashable; the key is never shown.

    Attributes:
        url: where the service listens, without a trailing slash; ``off`` for no service.
        api_key: sent as ``Authorization: Bearer``; ``None`` for an open service.
        client_id: agents are shared between workflows of the same client.
        timeout_s: longest wait for each of connecting, sending and each read, in seconds.
    """

    url: str = DEFAULT_SERVICE_URL
    api_key: str | None = field(default=None, repr=False)
    client_id: str = DEFAULT_CLIENT_ID
    timeout_s: float = DEFAULT_TIMEOUT_S

    def __post_init__(self) -> None:
        parts = _split(self.url)
        if not self.off and (
            parts is None or parts.scheme not in ("http", "https") or not parts.hostname
        ):
            raise InvalidInputError(
                ("service_url",),
                f"{self.url!r} is not an http(s) address; it should look like "
                f"{DEFAULT_SERVICE_URL}, or be 'off' (KVFLOW_SERVICE_URL)",
            )
        key = self.api_key
        if key is not None and not (key.isascii() and key.isprintable() and " " not in key and key):
            raise InvalidInputError(
                ("api_key",), "must be printable ASCII without spaces (KVFLOW_API_KEY)"
            )
        checked_identifier(("client_id",), self.client_id)
        if not 0 < self.timeout_s < float("inf"):
            raise InvalidInputError(
                ("timeout_s",), f"must be a positive number of seconds, not {self.timeout_s!r}"
            )

    @classmethod
    def resolve(
        cls,
        url: str | None = None,
        api_key: str | None = None,
        client_id: str | None = None,
        timeout_s: float | None = None,
        *,
        environ: Mapping[str, str] = os.environ,
    ) -> ClientSettings:
        """What is given, else ``KVFLOW_SERVICE_URL`` and so on, else the defaults.

        Raises:
            InvalidInputError: a value is wrong; the field is named.
        """
        address = (url or environ.get("KVFLOW_SERVICE_URL") or DEFAULT_SERVICE_URL).strip()
        return cls(
            url="off" if address.lower() in ("off", "none") else address.rstrip("/"),
            api_key=api_key or environ.get("KVFLOW_API_KEY") or None,
            client_id=client_id or environ.get("KVFLOW_CLIENT_ID") or DEFAULT_CLIENT_ID,
            timeout_s=DEFAULT_TIMEOUT_S if timeout_s is None else timeout_s,
        )

    @property
    def off(self) -> bool:
        """Whether there is no service, and steps travel with the requests instead."""
        return self.url == "off"

    @property
    def headers(self) -> dict[str, str]:
        return {} if self.api_key is None else {"Authorization": f"Bearer {self.api_key}"}

    @property
    def on_loopback(self) -> bool:
        """Whether the service is on this machine, where no proxy should be asked."""
        host = urlsplit(self.url).hostname or ""
        if host == "localhost" or host.endswith(".localhost"):
            return True
        try:
            return ip_address(host).is_loopback
        except ValueError:
            return False


def checked_identifier(field: tuple[str | int, ...], value: object) -> str:
    """``value`` if it can be an id on the wire.

    Raises:
        InvalidInputError: it cannot.
    """
    try:
        return _IDENTIFIER.validate_python(value, strict=True)
    except ValidationError:
        raise InvalidInputError(
            field,
            f"{value!r} cannot be an id; use 1 to 256 letters, digits and . _ : @ - , "
            "starting with a letter or digit",
        ) from None


def _split(url: str) -> SplitResult | None:
    try:
        parts = urlsplit(url)
        _ = parts.port  # raises if it is not a port
    except ValueError:
        return None
    return parts
