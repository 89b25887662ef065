"""A request's whole way through the cache, and what share of a GPU's time that would be.

The first is measured, the same requests on each core in turn. The second is arithmetic: what KVFlow
takes beyond SGLang's Rust core, over the time that an H100 needs for the request by the cost model
in ``kvflow.simulator``. SGLang overlaps the scheduler's work with the GPU's, so that share is lost
only where the scheduler is what the engine waits for.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final

from benchmarks.plugin.requests import PHASES, build_tree
from benchmarks.plugin.samples import in_turn, ratios, summary
from benchmarks.plugin.trees import quiet_collector
from kvflow.sglang_plugin.control import ServiceUpdate, WorkflowUpdate
from kvflow.simulator.presets import cost_model
from tests.sglang_plugin.caches import Core

__all__ = ["ARMS", "SCENARIOS", "Life", "measure_lives"]

ARMS: Final[Mapping[str, tuple[Core, bool]]] = {
    "python": ("python", False),
    "rust": ("rust", False),
    "kvflow-idle": ("kvflow", False),
    "kvflow": ("kvflow", True),
}
"""By name: the core, and whether requests say whose they are."""

AGENTS: Final = 10
BATCH: Final = 32
GPU: Final = "h100"
MODEL: Final = "llama-3.1-8b"
CLIENT: Final = "benchmark"
_POOL_TOKENS: Final = 262_144
_CONTEXT_TOKENS: Final = 16_384
_WARM_UP: Final = 2 * AGENTS


@dataclass(frozen=True, slots=True)
class Life:
    """Requests of ten agents, each with its prefix and some tokens of its own."""

    name: str
    page_size: int
    prefix_tokens: int
    fresh_tokens: int
    output_tokens: int


SCENARIOS: Final = (
    Life("64-token prompts, one token out", 16, 48, 16, 1),
    Life("64-token prompts, one token out, pages of 1", 1, 48, 16, 1),
    Life("prefixes of 1,000, one token out", 16, 1_008, 64, 1),
    Life("prefixes of 800, 32 tokens out", 16, 800, 64, 32),
    Life("prefixes of 8,000, 32 tokens out", 16, 8_000, 64, 32),
)


def measure_lives(life: Life, requests: int) -> dict[str, Any]:
    """Microseconds per request, by arm and phase. ``engine_context`` must be entered."""
    trees = {
        name: build_tree(core, life.page_size, _POOL_TOKENS, _CONTEXT_TOKENS)
        for name, (core, _) in ARMS.items()
    }
    taken: dict[str, dict[str, list[float]]] = {
        name: {phase: [] for phase in (*PHASES, "total")} for name in ARMS
    }
    rng = random.Random(life.name)
    with quiet_collector():
        for number in range(-_WARM_UP, requests):
            workflow, agent = divmod(number + _WARM_UP, AGENTS)
            prefix = list(
                range(agent * _CONTEXT_TOKENS, agent * _CONTEXT_TOKENS + life.prefix_tokens)
            )
            prompt = prefix + _fresh(rng, life.fresh_tokens)
            answer = _fresh(rng, life.output_tokens)
            for name in in_turn(trees, number):
                tree = trees[name]
                metadata = None
                if ARMS[name][1]:
                    metadata = _metadata(workflow, agent)
                    tree.cache.apply_control(_steps(workflow, agent))
                phases = tree.serve(prompt, answer, metadata)
                if number >= 0:
                    phases["total"] = sum(phases.values())
                    for phase, seconds in phases.items():
                        taken[name][phase].append(seconds * 1e6)
    return {
        "scenario": asdict(life),
        "us": {
            name: {phase: summary(values) for phase, values in phases.items()}
            for name, phases in taken.items()
        },
        "total_over_rust": {
            name: ratios(phases["total"], taken["rust"]["total"]) for name, phases in taken.items()
        },
        "computed": _computed(life, taken),
    }


def _computed(life: Life, taken: Mapping[str, Mapping[str, list[float]]]) -> dict[str, Any]:
    """What the difference to the Rust core is of a GPU's time for such a request."""
    costs = cost_model(GPU, MODEL)
    part = (life.fresh_tokens, life.prefix_tokens)
    context_tokens = life.fresh_tokens + life.prefix_tokens
    decode_s = costs.decode_s(BATCH, BATCH * context_tokens)
    gpu_us = (costs.prefill_s([part] * BATCH) + decode_s * (life.output_tokens - 1)) / BATCH * 1e6
    extra_us = {
        name: summary(
            [
                ours - rust
                for ours, rust in zip(phases["total"], taken["rust"]["total"], strict=True)
            ]
        )["median"]
        for name, phases in taken.items()
    }
    return {
        "gpu": GPU,
        "model": MODEL,
        "batch": BATCH,
        "gpu_us_per_request": float(f"{gpu_us:.4g}"),
        "extra_us": extra_us,
        "share": {name: float(f"{us / gpu_us:.3g}") for name, us in extra_us.items()},
    }


def _fresh(rng: random.Random, count: int) -> list[int]:
    return [rng.randrange(10**6, 10**9) for _ in range(count)]


def _metadata(workflow: int, agent: int) -> dict[str, str]:
    return {"client_id": CLIENT, "workflow_id": f"w{workflow}", "agent_id": f"a{agent}"}


def _steps(workflow: int, agent: int) -> ServiceUpdate:
    """The workflow is at this agent; the one before has ended."""
    steps = {f"a{other}": float((other - agent) % AGENTS) for other in range(AGENTS)}
    ended = ((CLIENT, f"w{workflow - 1}"),) if agent == 0 and workflow else ()
    update = WorkflowUpdate((CLIENT, f"w{workflow}"), agent + 1, steps, {})
    return ServiceUpdate(workflows=(update,), closed=ended)
