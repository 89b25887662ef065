"""What the plugin reads from the environment."""

from __future__ import annotations

import pytest

from kvflow.errors import InvalidInputError
from kvflow.sglang_plugin.settings import PluginSettings


def test_defaults() -> None:
    settings = PluginSettings.from_env({})
    assert settings.service_url == "http://127.0.0.1:8100"
    assert settings.lease_s is None
    assert settings.engine_id


@pytest.mark.parametrize("off", ["off", "OFF", "none", ""])
def test_service_can_be_off(off: str) -> None:
    assert PluginSettings.from_env({"KVFLOW_SERVICE_URL": off}).service_url is None


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("KVFLOW_SERVICE_URL", "127.0.0.1:8100"),
        ("KVFLOW_SERVICE_URL", "ftp://here"),
        ("KVFLOW_LEASE_S", "soon"),
        ("KVFLOW_LEASE_S", "0"),
        ("KVFLOW_LEASE_S", "inf"),
    ],
)
def test_wrong_values_name_the_variable(variable: str, value: str) -> None:
    with pytest.raises(InvalidInputError, match=variable):
        PluginSettings.from_env({variable: value})


def test_key_is_not_shown() -> None:
    assert "s3cret" not in repr(PluginSettings.from_env({"KVFLOW_API_KEY": "s3cret"}))
