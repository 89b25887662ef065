from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from kvflow.cli.main import main
from kvflow.simulator import POLICIES
from kvflow.simulator.cost_files import written_cost_model
from kvflow.simulator.presets import cost_model

SCENARIO = """
name = "tiny"
[prompts]
fixed_tokens = 200
[agents]
agents = 4
rounds = 3
[cache]
device_tokens = 600
host_tokens = 900
"""


@pytest.fixture
def scenario(tmp_path: Path) -> str:
    path = tmp_path / "tiny.toml"
    path.write_text(SCENARIO)
    return str(path)


def test_a_row_for_each_policy(scenario: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["simulate", scenario, "--policies", "all", "--bound"]) == 0
    text = capsys.readouterr().out
    assert "tiny: 8 calls after the warm-up, simulated on h100 llama-3.1-8b" in text
    rows = {line.split()[0]: line.split() for line in text.splitlines() if line.strip()}
    assert set(POLICIES) < rows.keys()
    assert rows["lru"][1:5] == ["0.0%", "0.0%", "0.0%", "0.0%"]
    assert rows["kvflow"][4] == "100.0%"


def test_figures_as_json(scenario: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    costs = tmp_path / "costs.json"
    costs.write_text(json.dumps(written_cost_model(cost_model("l4", "llama-3.1-8b"))))
    arguments = ["--policies", "lru,kvflow", "--costs", str(costs), "--host-tokens", "0"]
    assert main(["simulate", scenario, *arguments, "--json", "-"]) == 0
    captured = capsys.readouterr()
    data = json.loads(captured.out)
    assert "tiny: 8 calls" in captured.err
    assert data["costs"]["name"] == "l4 llama-3.1-8b"
    assert data["scenario"]["cache"]["host_tokens"] == 0
    assert data["engine"]["write_policy"] == "write_through"
    assert [row["policy"] for row in data["results"]] == ["lru", "kvflow"]
    assert data["results"][1]["hits"]["device"] > 0
    assert data["results"][1]["hits"]["host"] == 0
    assert data["results"][0]["ttft_s"].keys() == {"p50", "p90", "p99"}
    assert main(["simulate", scenario, "--json", str(tmp_path / "out.json")]) == 0
    assert len(json.loads((tmp_path / "out.json").read_text())["results"]) == 4


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--policies", "lru,best"], "--policies: 'best' is unknown; use all, or some of lru, "),
        (["--gpu", "abacus"], "gpu: 'abacus'"),
        (["--costs", "nowhere.json"], "nowhere.json: cannot be read"),
        (["--device-tokens", "0"], "--device-tokens: 0 is too small; give at least 1"),
        (["--device-tokens", "200"], "cache.device_tokens: call 0 of 'w0' needs 239 tokens"),
        (["--write-policy", "never"], "--write-policy: 'never' is unknown; use write_through, "),
        (["--json", "/nowhere/x.json"], "--json: there is no folder '/nowhere'"),
    ],
)
def test_what_is_wrong_is_said(
    scenario: str, arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["simulate", scenario, *arguments]) == 2
    assert words in capsys.readouterr().err


def test_a_scenario_that_is_none(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["simulate", "no-such-scenario"]) == 2
    assert "no-such-scenario: is no scenario file" in capsys.readouterr().err


def test_without_simpy_it_says_what_to_install() -> None:
    code = "import sys; sys.modules['simpy'] = None; from kvflow.cli.main import main; "
    done = subprocess.run(
        [sys.executable, "-c", code + "sys.exit(main(['simulate', 'ring']))"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1
    assert "needs the package simpy, which is not installed" in done.stderr
    assert "pip install 'kvflow[simulate]'" in done.stderr
