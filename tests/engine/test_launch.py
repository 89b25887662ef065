"""What it takes to start an engine on this machine."""

from __future__ import annotations

import pytest

from kvflow.engine import launch
from kvflow.engine.launch import prepare
from kvflow.engine.options import EngineOptions
from kvflow.errors import EnvironmentProblemError


def test_what_is_missing_is_said_before_the_model_is_converted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(launch, "find_spec", lambda _name: None)
    with pytest.raises(EnvironmentProblemError, match="SGLang is not installed"):
        prepare(EngineOptions())
