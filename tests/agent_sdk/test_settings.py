from __future__ import annotations

import pytest

from kvflow.agent_sdk import KVFlowClient
from kvflow.agent_sdk.settings import ClientSettings
from kvflow.errors import InvalidInputError


def test_defaults() -> None:
    settings = ClientSettings.resolve(environ={})
    assert settings == ClientSettings("http://127.0.0.1:8100", None, "default", 2.0)


def test_environment_stands_in_for_what_is_not_given() -> None:
    environ = {
        "KVFLOW_SERVICE_URL": "https://kv.example:9/",
        "KVFLOW_API_KEY": "secret",
        "KVFLOW_CLIENT_ID": "team-a",
    }
    settings = ClientSettings.resolve(environ=environ)
    assert settings == ClientSettings("https://kv.example:9", "secret", "team-a")
    given = ClientSettings.resolve("http://b", "other", "team-b", 5, environ=environ)
    assert given == ClientSettings("http://b", "other", "team-b", 5)


def test_empty_variables_count_as_unset() -> None:
    environ = {"KVFLOW_SERVICE_URL": "", "KVFLOW_API_KEY": "", "KVFLOW_CLIENT_ID": ""}
    assert ClientSettings.resolve(environ=environ) == ClientSettings()


def test_the_key_is_sent_and_not_shown() -> None:
    settings = ClientSettings(api_key="secret")
    assert settings.headers == {"Authorization": "Bearer secret"}
    assert "secret" not in repr(settings)


@pytest.mark.parametrize(
    ("url", "on_loopback"),
    [
        ("http://127.0.0.1:8100", True),
        ("http://[::1]:8100", True),
        ("http://localhost:8100", True),
        ("http://10.0.0.1:8100", False),
        ("http://kvflow.example", False),
    ],
)
def test_loopback(url: str, on_loopback: bool) -> None:
    assert ClientSettings(url).on_loopback is on_loopback


@pytest.mark.parametrize(
    ("field", "arguments"),
    [
        ("service_url", {"url": "127.0.0.1:8100"}),
        ("service_url", {"url": "http://"}),
        ("service_url", {"url": "http://host:port"}),
        ("service_url", {"url": "ftp://host"}),
        ("api_key", {"api_key": "two words"}),
        ("api_key", {"api_key": "schlüssel"}),
        ("client_id", {"client_id": "-x"}),
        ("timeout_s", {"timeout_s": 0}),
        ("timeout_s", {"timeout_s": float("inf")}),
    ],
)
def test_wrong_values_are_named(field: str, arguments: dict[str, object]) -> None:
    with pytest.raises(InvalidInputError) as caught:
        ClientSettings(**arguments)
    assert caught.value.field == (field,)


@pytest.mark.parametrize("word", ["off", "OFF", "none"])
def test_no_service(word: str) -> None:
    assert ClientSettings.resolve(word).off
    assert ClientSettings.resolve(environ={"KVFLOW_SERVICE_URL": word}).off
    assert not ClientSettings.resolve(environ={}).off


def test_a_client_needs_a_service() -> None:
    with pytest.raises(InvalidInputError, match="off"):
        KVFlowClient("off")
