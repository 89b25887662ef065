"""What the plugin reads from the environment."""

from __future__ import annotations

from pathlib import Path

import pytest

from kvflow.errors import InvalidInputError
from kvflow.sglang_plugin.settings import PluginSettings


def test_defaults() -> None:
    settings = PluginSettings.from_env({})
    assert settings.service_url == "http://127.0.0.1:8100"
    assert settings.lease_s is None
    assert settings.engine_id
    assert settings.prefetch
    assert settings.load == "auto"
    assert settings.admission_overcommit is None
    assert settings.prefetch_max_tokens == 8192
    assert settings.trace_dir is None
    assert settings.report_interval_s == 2.0


@pytest.mark.parametrize(("text", "seconds"), [("0", None), ("off", None), ("0.5", 0.5), ("", 2.0)])
def test_reports_come_at_an_interval_or_not_at_all(text: str, seconds: float | None) -> None:
    settings = PluginSettings.from_env({"KVFLOW_REPORT_INTERVAL_S": text})
    assert settings.report_interval_s == seconds


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
        ("KVFLOW_PREFETCH", "yes"),
        ("KVFLOW_REPORT_INTERVAL_S", "-1"),
        ("KVFLOW_LOAD", "never"),
        ("KVFLOW_ADMISSION_OVERCOMMIT", "on"),
        ("KVFLOW_ADMISSION_OVERCOMMIT", "-1"),
        ("KVFLOW_ADMISSION_OVERCOMMIT", "nan"),
        ("KVFLOW_PREFETCH_MAX_TOKENS", "many"),
        ("KVFLOW_PREFETCH_MAX_TOKENS", "0"),
    ],
)
def test_wrong_values_name_the_variable(variable: str, value: str) -> None:
    with pytest.raises(InvalidInputError, match=variable):
        PluginSettings.from_env({variable: value})


@pytest.mark.parametrize(
    ("variable", "value", "attribute", "expected"),
    [
        ("KVFLOW_PREFETCH", "off", "prefetch", False),
        ("KVFLOW_PREFETCH", " On ", "prefetch", True),
        ("KVFLOW_PREFETCH", "", "prefetch", True),
        ("KVFLOW_LOAD", "load", "load", "load"),
        ("KVFLOW_LOAD", "RECOMPUTE", "load", "recompute"),
        ("KVFLOW_LOAD", "auto", "load", "auto"),
        ("KVFLOW_LOAD", "", "load", "auto"),
        ("KVFLOW_ADMISSION_OVERCOMMIT", "1.5", "admission_overcommit", 1.5),
        ("KVFLOW_ADMISSION_OVERCOMMIT", "OFF", "admission_overcommit", None),
        ("KVFLOW_ADMISSION_OVERCOMMIT", "", "admission_overcommit", None),
        ("KVFLOW_PREFETCH_MAX_TOKENS", "512", "prefetch_max_tokens", 512),
        ("KVFLOW_PREFETCH_MAX_TOKENS", "", "prefetch_max_tokens", 8192),
        ("KVFLOW_TRACE_DIR", "traces/here", "trace_dir", Path("traces/here")),
        ("KVFLOW_TRACE_DIR", "", "trace_dir", None),
    ],
)
def test_what_prefetch_reads(variable: str, value: str, attribute: str, expected: object) -> None:
    assert getattr(PluginSettings.from_env({variable: value}), attribute) == expected


@pytest.mark.parametrize(
    ("variable", "wrong", "right"),
    [
        ("KVFLOW_PREFETCH", "yes", "on, off"),
        ("KVFLOW_LOAD", "never", "auto, load, recompute"),
        ("KVFLOW_ADMISSION_OVERCOMMIT", "much", "1.5, or 'off'"),
        ("KVFLOW_PREFETCH_MAX_TOKENS", "many", "8192"),
    ],
)
def test_wrong_values_say_what_would_be_right(variable: str, wrong: str, right: str) -> None:
    with pytest.raises(InvalidInputError) as error:
        PluginSettings.from_env({variable: wrong})
    assert wrong in str(error.value)
    assert right in str(error.value)


def test_key_is_not_shown() -> None:
    assert "s3cret" not in repr(PluginSettings.from_env({"KVFLOW_API_KEY": "s3cret"}))
