"""Settings: where they come from, what is refused, what is shown."""

from __future__ import annotations

import pytest
from pydantic import SecretStr, ValidationError

from kvflow.server.settings import ServiceSettings, is_loopback


def test_defaults() -> None:
    settings = ServiceSettings()

    assert (settings.host, settings.port, settings.api_key) == ("127.0.0.1", 8100, None)
    assert settings.lease_s == 10
    assert settings.heartbeat_s * 3 == settings.lease_s
    assert settings.max_body_bytes == 8 * 1024 * 1024


def test_environment_and_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KVFLOW_PORT", "9000")
    monkeypatch.setenv("KVFLOW_API_KEY", "from-env")
    monkeypatch.setenv("KVFLOW_SERVICE_URL", "http://elsewhere")

    settings = ServiceSettings.model_validate({"port": 9001})

    assert settings.port == 9001
    assert settings.api_key == SecretStr("from-env")


def test_an_empty_variable_is_no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KVFLOW_API_KEY", "")

    assert ServiceSettings().api_key is None


def test_a_kubernetes_service_link_is_no_port(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KVFLOW_PORT", "tcp://10.0.0.7:8100")

    assert ServiceSettings().port == 8100


def test_frozen_and_masked() -> None:
    settings = ServiceSettings(api_key=SecretStr("hidden"))

    with pytest.raises(ValidationError, match="frozen"):
        settings.port = 1  # type: ignore[misc]
    assert "hidden" not in repr(settings) + "".join(settings.lines())
    assert "api_key = **********" in settings.lines()
    assert "port = 8100" in settings.lines()


def test_the_log_says_what_was_chosen_and_where_it_is() -> None:
    settings = ServiceSettings(lease_s=5, database="none", access_log=False)

    assert settings.lines() == [
        "host = 127.0.0.1",
        "port = 8100",
        "lease_s = 5.0",
        "database = none",
    ]


@pytest.mark.parametrize(
    ("host", "engine_url"),
    [
        ("127.0.0.1", "http://127.0.0.1:8100"),
        ("127.0.0.1", "http://localhost:8100/v1"),
        ("0.0.0.0", "http://127.0.0.1:8100"),
        ("kv.internal", "http://kv.internal:8100"),
    ],
)
def test_the_engine_is_not_the_service_itself(host: str, engine_url: str) -> None:
    with pytest.raises(ValidationError, match="own address"):
        ServiceSettings(host=host, allow_open=True, engine_url=engine_url)
    ServiceSettings(host=host, port=8101, allow_open=True, engine_url=engine_url)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"port": 70000}, "65535"),
        ({"lease_s": 0}, "greater than 0"),
        ({"lease_s": float("inf")}, "finite|less than"),
        ({"api_key": SecretStr("two words")}, "printable ASCII"),
        ({"api_key": SecretStr("schlüssel")}, "printable ASCII"),
        ({"host": "0.0.0.0"}, "KVFLOW_API_KEY"),
        ({"host": "::"}, "KVFLOW_API_KEY"),
        ({"host": ""}, "KVFLOW_API_KEY"),
        ({"host": "kvflow.example.org"}, "KVFLOW_ALLOW_OPEN"),
    ],
)
def test_refused(wrong: dict[str, object], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        ServiceSettings.model_validate(wrong)


def test_beyond_loopback_with_a_key_or_on_purpose() -> None:
    assert ServiceSettings(host="0.0.0.0", api_key=SecretStr("k")).host == "0.0.0.0"
    assert ServiceSettings(host="0.0.0.0", allow_open=True).host == "0.0.0.0"


@pytest.mark.parametrize(
    ("host", "loopback"),
    [
        ("127.0.0.1", True),
        ("127.1.2.3", True),
        ("::1", True),
        ("localhost", True),
        ("a.localhost", True),
        ("0.0.0.0", False),
        ("192.168.0.1", False),
        ("localhost.example.org", False),
        ("127.0.0.1.example.org", False),
    ],
)
def test_is_loopback(host: str, loopback: bool) -> None:
    assert is_loopback(host) is loopback
