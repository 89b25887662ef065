"""What hints cost that are wrong on purpose: KVFlow's throughput over stock SGLang's.

``python -m benchmarks.prefetch.wrong_graph`` keeps an engine of each alive and gives them the same
ring of agents in turn, a round each: stock, KVFlow, stock, KVFlow, ... So both see the same
machine. Every call claims steps that are wrong: a random order that is never right about what comes
next, or the ring the other way round. ``--rounds`` is the number of such pairs.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from statistics import median
from typing import Any, Final

from benchmarks.environment import describe_environment, write_result
from benchmarks.prefetch.engines import ENGINE_SEED, Arm, Engine, arguments, ring_round, running
from benchmarks.prefetch.link import DEVICE_TOKENS, HICACHE_RATIO, link_bytes_per_s, model_kv_bytes
from benchmarks.prefetch.workload import (
    Call,
    Claims,
    Ring,
    differences,
    prefetch_figures,
    reversed_claims,
    shuffled_claims,
    summarize,
)
from kvflow.engine.cpu_link import LINK_VARIABLE

__all__ = ["CASES", "SETTINGS", "ratio_of"]

SLOW_LINK_GB_PER_S: Final = 4
SETTINGS: Final[Mapping[str, tuple[float | None, bool]]] = {
    "hicache": (HICACHE_RATIO, False),
    "hicache-4gb": (HICACHE_RATIO, True),
    "device-only": (None, False),
}
"""By name: size of the host tier over the device tier's, and whether the link is slowed."""

CASES: Final[Mapping[str, Callable[[Ring, int], Claims]]] = {
    "shuffled": shuffled_claims,
    "reversed": lambda ring, _seed: reversed_claims(ring),
}
ENGINES: Final = ("stock", "kvflow")


def ratio_of(blocks: Mapping[str, Sequence[Mapping[str, float]]]) -> dict[str, float]:
    """KVFlow's calls per second over stock SGLang's, pair by pair; above 1: KVFlow is faster."""
    pairs = [
        kvflow["calls_per_s"] / stock["calls_per_s"]
        for stock, kvflow in zip(blocks["stock"], blocks["kvflow"], strict=True)
    ]
    return {"median": median(pairs), "least": min(pairs), "most": max(pairs)}


def run_case(
    engines: Mapping[str, Engine], ring: Ring, case: str, pairs: int, seed: int
) -> dict[str, Any]:
    """A cold round on each engine, then ``pairs`` measured ones, in strict alternation.

    Hints of the cold round are true. So the measured ones begin with hints that are trusted, and
    what it costs until they no longer are is in the first pair.
    """
    claims = {name: CASES[case](ring, seed) for name in engines}
    calls: dict[str, list[Call]] = {name: [] for name in engines}
    blocks: dict[str, list[dict[str, float]]] = {name: [] for name in engines}
    before: dict[str, float] = {}
    for number in range(pairs + 1):
        for name, engine in engines.items():
            # The case is the client: what one case taught the plugin is not the other's.
            if number == 0:
                engine.empty()
                calls[name] += ring_round(engine, ring, 0, ring.claims, client_id=case)
                before = engine.metrics() or before
                continue
            idle = [other for other in engines.values() if other is not engine]
            own_cpu_s, idle_cpu_s = engine.cpu_s(), sum(other.cpu_s() for other in idle)
            begun_s = time.perf_counter()
            done = ring_round(engine, ring, number, claims[name], client_id=case)
            wall_s = time.perf_counter() - begun_s
            calls[name] += done
            blocks[name].append(
                {
                    "calls_per_s": len(done) / wall_s,
                    "wall_s": wall_s,
                    "cpu_s": engine.cpu_s() - own_cpu_s,
                    "idle_engine_cpu_s": sum(other.cpu_s() for other in idle) - idle_cpu_s,
                }
            )
    return {
        "ratio": ratio_of(blocks),
        "blocks": blocks,
        "summaries": {name: summarize(made) for name, made in calls.items()},
        "prefetch": prefetch_figures(before, engines["kvflow"].metrics()),
        "differences": differences(calls),
        "calls": {name: [call.row() for call in made] for name, made in calls.items()},
    }


def run_setting(
    setting: str, ring: Ring, pairs: int, seed: int, kv_bytes: int
) -> list[dict[str, Any]]:
    ratio, slowed = SETTINGS[setting]
    env = {}
    if slowed:
        env[LINK_VARIABLE] = f"{link_bytes_per_s(SLOW_LINK_GB_PER_S, kv_bytes):.0f}"
    arms = [
        Arm("stock", "stock", DEVICE_TOKENS, ratio, env=env),
        Arm("kvflow", "kvflow", DEVICE_TOKENS, ratio, env=env),
    ]
    print(f"{setting}: starting", flush=True)
    rows = []
    with ExitStack() as stack:
        engines = {arm.name: stack.enter_context(running(arm)) for arm in arms}
        for case in CASES:
            row = run_case(engines, ring, case, pairs, seed)
            flags = {name: engine.flags for name, engine in engines.items()}
            variables = {arm.name: arm.variables for arm in arms}
            rows.append(
                {
                    "setting": setting,
                    "case": case,
                    **row,
                    "variables": variables,
                    "engine_flags": flags,
                }
            )
            print(
                f"{setting}, {case}: ratio {row['ratio']['median']:.3f} "
                f"({row['ratio']['least']:.3f} to {row['ratio']['most']:.3f})",
                flush=True,
            )
    return rows


def main(argv: Sequence[str] | None = None) -> None:
    parser = arguments(__doc__, "wrong_graph", rounds=4)
    parser.add_argument("--agents", type=int, default=Ring().agents)
    parser.add_argument("--settings", nargs="+", choices=tuple(SETTINGS), default=tuple(SETTINGS))
    options = parser.parse_args(argv)
    begun_s = time.monotonic()
    environment = describe_environment()
    ring = Ring(agents=options.agents, seed=options.seed)
    kv_bytes = model_kv_bytes()
    rows: list[dict[str, Any]] = []
    for setting in options.settings:
        rows += run_setting(setting, ring, options.rounds, options.seed, kv_bytes)
        write_result(
            options.output,
            {
                "environment": environment,
                "seeds": {"text": options.seed, "claims": options.seed, "engine": ENGINE_SEED},
                "settings": {
                    **asdict(ring),
                    "pairs": options.rounds,
                    "device_tokens": DEVICE_TOKENS,
                    "hicache_ratio": HICACHE_RATIO,
                    "kv_bytes_per_token": kv_bytes,
                },
                "outputs_identical": not any(row["differences"] for row in rows),
                "comparisons": rows,
                "took_s": time.monotonic() - begun_s,
            },
        )
    print(f"{options.output}")


if __name__ == "__main__":
    main()
