"""The examples run as they are, against the real service and a local stand-in for an engine."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from kvflow.agent_sdk import KVFlowClient
from tests.agent_sdk.recording_engine import WORDS, recording_engine

EXAMPLES = Path(__file__).parents[2] / "examples"
TEXT = "".join(WORDS)

REQUESTS = {
    "decorated_agents.py": {"planner": 2, "coder": 1, "writer": 1, "reviewer": 2},
    "parallel_agents.py": {"researcher": 3, "editor": 1},
    "plain_http.py": {"translator": 1, "proofreader": 1},
    "watch_steps.py": {},
}


def test_none_is_forgotten() -> None:
    assert {path.name for path in EXAMPLES.glob("*.py")} == set(REQUESTS)


@pytest.mark.parametrize("name", REQUESTS)
def test_example(name: str, service_url: str, client: KVFlowClient) -> None:
    done, bodies = run_example(name, service_url)
    assert (done.returncode, done.stderr) == (0, "")
    agents = Counter(body["custom_params"]["kvflow"]["agent_id"] for body in bodies)
    assert agents == REQUESTS[name]
    assert list(client.list_workflows()) == []
    if REQUESTS[name]:
        assert TEXT in done.stdout
    else:
        assert "{'planner': None, 'coder': 1, 'tester': 2}" in done.stdout


def test_without_a_service() -> None:
    done, bodies = run_example("plain_http.py", "off")
    assert (done.returncode, done.stderr) == (0, "")
    assert [body["custom_params"]["kvflow_steps"] for body in bodies] == [
        {"translator": 0, "proofreader": 1},
        {"translator": None, "proofreader": 0},
    ]


def run_example(name: str, service_url: str) -> tuple[subprocess.CompletedProcess[str], list[Any]]:
    with recording_engine() as engine:
        done = subprocess.run(
            [sys.executable, "-W", "error", str(EXAMPLES / name)],
            env={
                **os.environ,
                "OPENAI_BASE_URL": engine.base_url,
                "KVFLOW_SERVICE_URL": service_url,
            },
            capture_output=True,
            text=True,
            timeout=100,
            check=False,
        )
    return done, engine.bodies
