"""What ``KVFLOW_MQTT_URL`` may be."""

from __future__ import annotations

from typing import Final
from urllib.parse import urlsplit

__all__ = ["check_mqtt_url"]

_EXAMPLE: Final = "mqtts://user:password@broker.example:8883"


def check_mqtt_url(url: str) -> str:
    """The URL if it names a broker: ``mqtt[s]://[user[:password]@]host[:port]``.

    What is wrong is said without repeating the URL, which may hold a password.

    Raises:
        ValueError: it does not; says what would be right.
    """
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError:
        raise ValueError(f"is not an address; give e.g. {_EXAMPLE}") from None
    if parts.scheme not in ("mqtt", "mqtts") or not parts.hostname:
        raise ValueError(f"must be like mqtt://host:1883 or {_EXAMPLE}")
    if parts.path not in ("", "/") or parts.query or parts.fragment:
        raise ValueError(
            f"must end with the port, as in {_EXAMPLE}; what topics begin with is "
            "KVFLOW_MQTT_PREFIX"
        )
    if parts.password is not None and not parts.username:
        raise ValueError(f"has a password but no user; give e.g. {_EXAMPLE}")
    return url
