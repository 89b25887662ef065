"""Which addresses of a broker are taken, and that a password is never repeated."""

from __future__ import annotations

import pytest
from pydantic import SecretStr, ValidationError

from kvflow.server import ServiceSettings
from kvflow.server.mqtt.broker import broker_of


def broker(url: str) -> tuple[str, int, str | None, str | None, bool]:
    found = broker_of(ServiceSettings(mqtt_url=SecretStr(url)))
    return found.host, found.port, found.username, found.password, found.tls is not None


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("mqtt://broker", ("broker", 1883, None, None, False)),
        ("mqtts://broker/", ("broker", 8883, None, None, True)),
        ("mqtt://u@[::1]:99", ("::1", 99, "u", None, False)),
        ("mqtt://u%40x:p%2Fw%3A@b:1", ("b", 1, "u@x", "p/w:", False)),
    ],
)
def test_addresses(url: str, expected: tuple[str, int, str | None, str | None, bool]) -> None:
    assert broker(url) == expected


@pytest.mark.parametrize(
    "url",
    [
        "tcp://u:hidden@b",
        "mqtt://",
        "mqtt://u:hidden@b:port",
        "mqtt://u:hidden@b/topic",
        "mqtt://:hidden@b",
        "u:hidden@b:1883",
    ],
)
def test_what_is_wrong_is_said_without_the_password(url: str) -> None:
    with pytest.raises(ValidationError) as refused:
        ServiceSettings(mqtt_url=SecretStr(url))
    assert "mqtt" in str(refused.value)
    assert "hidden" not in str(refused.value)


def test_a_prefix_has_no_wildcards() -> None:
    assert ServiceSettings(mqtt_prefix="a/b-1/c").mqtt_prefix == "a/b-1/c"
    for wrong in ("", "/a", "a/", "a/#", "+/a", "a//b"):
        with pytest.raises(ValidationError):
            ServiceSettings(mqtt_prefix=wrong)
