"""The workloads of the policy comparison, of a size that fills an H100 with Llama-3.1-8B.

Each comes with more fixed prompts than the device holds (422,000 tokens). In most of them the
workflows that are under way alone need more than that; in ``zipf`` and ``arrivals`` they do not,
and what is gained or lost depends on which workflows begin next. Calls are about a thousand or
two.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from kvflow.simulator.presets import device_tokens
from kvflow.workload import Scenario, parse_scenario

__all__ = ["GPU", "HOST_TIMES", "MODEL", "changed", "policy_scenarios"]

GPU: Final = "h100"
MODEL: Final = "llama-3.1-8b"
HOST_TIMES: Final = 4
"""Size of the host tier over that of the device tier, where there is one."""

_PROMPTS: Final = {"fixed_tokens": 4096, "dynamic_tokens": 128, "output_tokens": 64}

_WORKLOADS: Final[Mapping[str, Mapping[str, Any]]] = {
    "ring": {
        "description": "one workflow of 200 agents in a cycle",
        "agents": {"agents": 200, "rounds": 6},
        "load": {"workflows": 1},
    },
    "sequence": {
        "description": "16 workflows at once, of 20 teams of 10 agents each",
        "agents": {"agents": 10, "rounds": 4},
        "load": {"workflows": 48, "concurrency": 16, "teams": 20},
    },
    "branch": {
        "description": "stages of two alternatives",
        "agents": {"pattern": "branch", "agents": 21, "branches": 2, "rounds": 6},
        "load": {"workflows": 32, "concurrency": 8, "teams": 10},
    },
    "fan-out": {
        "description": "a planner, 8 workers side by side, a joiner",
        "agents": {"pattern": "fan_out", "agents": 20, "branches": 8, "rounds": 4},
        "load": {"workflows": 32, "concurrency": 8, "teams": 10},
    },
    "loop": {
        "description": "each agent goes back to the one before with probability 0.3",
        "agents": {"pattern": "loop", "agents": 20, "rounds": 3},
        "load": {"workflows": 32, "concurrency": 8, "teams": 10},
    },
    "random": {
        "description": "any of 3 successors, drawn with unequal probabilities",
        "agents": {"pattern": "random", "agents": 20, "branches": 3, "rounds": 4},
        "load": {"workflows": 32, "concurrency": 8, "teams": 10},
    },
    "tools": {
        "description": "a tool of 5 s (mean) before each call",
        "agents": {"agents": 10, "rounds": 4, "pause_s": 5.0},
        "load": {"workflows": 48, "concurrency": 16, "teams": 20},
    },
    "tenants": {
        "description": "16 clients with prompts of their own; half of a prompt is shared by a team",
        "prompts": {**_PROMPTS, "shared_tokens": 2048},
        "agents": {"agents": 8, "rounds": 3},
        "load": {"workflows": 96, "concurrency": 24, "clients": 16, "teams": 4},
    },
    "zipf": {
        "description": "60 teams of Zipf popularity (exponent 1), prompts of 1,024 to 8,192 tokens",
        "prompts": {**_PROMPTS, "fixed_tokens": (1024, 8192)},
        "agents": {"agents": 6, "rounds": 1},
        "load": {"workflows": 300, "concurrency": 8, "teams": 60, "zipf": 1.0},
    },
    "arrivals": {
        "description": "workflows arrive by a Poisson process, 1 every 2 s",
        "agents": {"agents": 10, "rounds": 2},
        "load": {"workflows": 80, "rate_per_s": 0.5, "teams": 25},
    },
    "chat": {
        "description": "64 conversations at once; each agent's prompt begins with its last one",
        "prompts": {
            **{"fixed_tokens": 1024, "dynamic_tokens": 512, "output_tokens": 256},
            "chat": True,
        },
        "agents": {"agents": 2, "rounds": 8, "pause_s": 5.0},
        "load": {"workflows": 128, "concurrency": 64, "teams": 16},
    },
    "peer": {
        "description": "four agents (plan, execute, express, review) that share half their prompt, "
        "with long questions",
        "prompts": {
            **{"fixed_tokens": 4096, "shared_tokens": 2048},
            **{"dynamic_tokens": 1024, "output_tokens": 256},
        },
        "agents": {"agents": 4, "rounds": 2},
        "load": {"workflows": 240, "concurrency": 32, "clients": 80},
    },
}


def policy_scenarios(seed: int, *, quick: bool = False) -> dict[str, Scenario]:
    """The workloads by name, with a host tier; ``quick``: the fewest workflows that make sense."""
    device = device_tokens(GPU, MODEL)
    made = {}
    for name, given in _WORKLOADS.items():
        load = dict(given["load"])
        agents = dict(given["agents"])
        if quick:
            load["workflows"] = max(1, load["workflows"] // 5)
            agents["rounds"] = max(1 if load["workflows"] > 1 else 3, agents["rounds"] // 2)
        made[name] = parse_scenario(
            {
                "name": name,
                "description": given["description"],
                "seed": seed,
                "prompts": given.get("prompts", _PROMPTS),
                "agents": agents,
                "load": load,
                "cache": {"device_tokens": device, "host_tokens": HOST_TIMES * device},
                "warm_up_rounds": 1,
            }
        )
    return made


def changed(scenario: Scenario, **sections: Mapping[str, Any]) -> Scenario:
    """The scenario with some values of some sections replaced, checked again."""
    data = scenario.model_dump()
    for section, values in sections.items():
        data[section] = {**data[section], **values}
    return parse_scenario(data)
