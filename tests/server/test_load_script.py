"""The load script and the soak, for moments: that they run, and what their tables say."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.service import load, service_tables, soak
from benchmarks.service.samples import Samples

MOMENT = load.Plan(
    seconds=0.3,
    workflows=300,  # so many that no workflow has two events under way
    rates_per_s=(100.0,),
    list_lengths=(50,),
    streams=((3, 50.0),),
    mixed_per_s=50.0,
)


def test_load() -> None:
    result = load.measured(MOMENT, ["memory"])

    (arm,) = result["arms"]
    assert [run["name"] for run in arm["runs"]] == [
        *("single", "single", "lists", "mixed", "streams")
    ]
    for run in arm["runs"]:
        assert set(run["statuses"]) == {"200"}
        assert sum(run["latency"]["histogram_us"].values()) == run["latency"]["count"]
    streams = arm["runs"][-1]
    assert streams["all_seen"]
    assert streams["effect"]["count"] == 3 * streams["latency"]["count"]
    environment = {"packages": {}, "cpu_model": "x", "cpu_cores": 2, "python": "p"}
    shown = service_tables.load({**result, "environment": environment})
    assert "memory, single events, 50/s, 3 engines" in shown
    assert "30,000/s" in service_tables.goals({**result, "environment": environment})


def test_soak(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output = tmp_path / "soak.json"
    arguments = ["soak", "--minutes", "0.05", "--output", str(output)]
    monkeypatch.setattr("sys.argv", arguments)

    assert soak.main() == 0

    result = json.loads(output.read_text())
    assert result["summary"]["requests"] > 100
    assert result["memory_s_mb"]
    assert "0.05 minutes" in service_tables.soak(result)


def test_quantiles_are_samples() -> None:
    samples = Samples()
    for number in range(1, 101):
        samples.add(number / 1000)

    summary = samples.summary()

    assert (summary["p50_ms"], summary["p99_ms"], summary["max_ms"]) == (50.0, 99.0, 100.0)
    assert sum(summary["histogram_us"].values()) == 100
