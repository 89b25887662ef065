"""Scenarios for tests, by hand and drawn."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from kvflow.workload import Scenario, WorkloadWorkflow, build_workload, parse_scenario

PATTERNS = ("sequence", "branch", "fan_out", "loop", "random")


def scenario(**sections: Any) -> Scenario:
    return parse_scenario({"name": "test", "cache": {"device_tokens": 4096}, **sections})


def workflows(**sections: Any) -> list[WorkloadWorkflow]:
    return list(build_workload(scenario(**sections)).workflows())


@st.composite
def scenarios(draw: st.DrawFn, **hints: Any) -> Scenario:
    """Anything that a scenario file can ask for, in small."""
    least = draw(st.integers(20, 60))
    return scenario(
        seed=draw(st.integers(0, 1000)),
        agents={
            "pattern": draw(st.sampled_from(PATTERNS)),
            "agents": draw(st.integers(1, 9)),
            "rounds": draw(st.integers(1, 3)),
            "branches": draw(st.integers(1, 4)),
            "loop_probability": draw(st.sampled_from([0.0, 0.3, 0.6, 0.9])),
            "pause_s": draw(st.sampled_from([0.0, 1.5])),
        },
        prompts={
            "fixed_tokens": draw(st.sampled_from([least, [least, least + 50]])),
            "shared_tokens": draw(st.sampled_from([0, 10, least])),
            "chat": draw(st.booleans()),
        },
        load={
            "workflows": draw(st.integers(2, 4)),
            "clients": draw(st.integers(1, 3)),
            "teams": draw(st.integers(1, 3)),
            "zipf": draw(st.sampled_from([0.0, 1.2])),
        }
        | draw(st.sampled_from([{"concurrency": 2}, {"rate_per_s": 3.0}])),
        hints=hints,
    )
