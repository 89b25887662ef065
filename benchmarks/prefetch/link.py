"""Loads ahead of need over links of several speeds, on a ring of agents.

``python -m benchmarks.prefetch.link`` runs, for each speed, stock SGLang with HiCache, KVFlow that
only orders eviction, and KVFlow that prefetches too; and the limit, stock SGLang whose device pool
holds everything. The device pool of the others holds about 4 of the 10 prompts, the host pool
all of them. Calls come back to back, so a copy has to fit into the step before.

A speed of X GB/s means X GB/s for a model whose KV is as large as Qwen2.5-32B's: the link is slowed
until it moves as many tokens per second as that one would.
"""

from __future__ import annotations

import json
from argparse import ArgumentParser
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from benchmarks.prefetch.engines import MODEL, Arm, ArmRun, Comparison, arguments, run_rings
from benchmarks.prefetch.workload import Ring
from kvflow.engine import resolve_model
from kvflow.engine.cpu_link import LINK_VARIABLE

__all__ = ["DEVICE_TOKENS", "HICACHE_RATIO", "arms", "kv_bytes_per_token", "link_bytes_per_s"]

DEVICE_TOKENS: Final = 3072
HICACHE_RATIO: Final = 6.0
LIMIT_TOKENS: Final = 16384
LARGE_MODEL_KV_BYTES: Final = 262_144
"""Per token of Qwen2.5-32B: 64 layers, keys and values, 8 heads of 128, two bytes each."""

SPEEDS_GB_PER_S: Final[tuple[float | None, ...]] = (1, 4, 16, None)
"""None: as fast as memory is copied."""

KINDS: Final = ("stock", "kvflow, no prefetch", "kvflow")


def kv_bytes_per_token(config: Mapping[str, Any], bytes_per_value: int = 4) -> int:
    """KV size of the model with this Hugging Face ``config.json``; float32 is used on the CPU."""
    heads = config["num_attention_heads"]
    head_dim = config.get("head_dim") or config["hidden_size"] // heads
    kv_heads = config.get("num_key_value_heads") or heads
    values = 2 * config["num_hidden_layers"] * kv_heads * head_dim
    return int(values * bytes_per_value)


def link_bytes_per_s(gb_per_s: float, kv_bytes: int) -> float:
    """The bandwidth at which this model's tokens move as fast as the large model's."""
    return gb_per_s * 1e9 / LARGE_MODEL_KV_BYTES * kv_bytes


def speed_name(gb_per_s: float | None) -> str:
    return "not slowed" if gb_per_s is None else f"{gb_per_s:g} GB/s"


def arms(gb_per_s: float | None, kv_bytes: int) -> list[Arm]:
    """The arms that are compared at one speed, stock first."""
    env = {}
    if gb_per_s is not None:
        env[LINK_VARIABLE] = f"{link_bytes_per_s(gb_per_s, kv_bytes):.0f}"
    speed = speed_name(gb_per_s)
    return [
        Arm(
            f"{speed}: {kind}",
            "stock" if kind == "stock" else "kvflow",
            DEVICE_TOKENS,
            HICACHE_RATIO,
            prefetch=kind == "kvflow",
            env=env,
        )
        for kind in KINDS
    ]


def model_kv_bytes() -> int:
    return kv_bytes_per_token(json.loads((Path(resolve_model(MODEL)) / "config.json").read_text()))


def ratios(run: dict[str, Any], stock: dict[str, Any], limit: dict[str, Any]) -> dict[str, float]:
    """Times of a run over stock SGLang's and over the limit's."""
    return {
        f"ttft_{percent}_over_{name}": run["summary"][f"ttft_{percent}_s"]
        / other["summary"][f"ttft_{percent}_s"]
        for percent in ("p50", "p95")
        for name, other in (("stock", stock), ("limit", limit))
    }


def speeds(text: str) -> tuple[float | None, ...]:
    return tuple(None if part == "none" else float(part) for part in text.split(","))


def parser() -> ArgumentParser:
    made = arguments(__doc__, "link", rounds=2)
    made.add_argument(
        "--speeds",
        type=speeds,
        default=SPEEDS_GB_PER_S,
        help="GB/s with commas between; none: not slowed (default: 1,4,16,none)",
    )
    made.add_argument("--agents", type=int, default=Ring().agents)
    return made


def main(argv: Sequence[str] | None = None) -> None:
    options = parser().parse_args(argv)
    ring = Ring(agents=options.agents, seed=options.seed)
    kv_bytes = model_kv_bytes()
    comparison = Comparison(
        options.output,
        options.seed,
        {
            "agents": ring.agents,
            "prefix_tokens": ring.prefix_words,
            "question_tokens": ring.question_words,
            "output_tokens": ring.max_tokens,
            "measured_rounds": options.rounds,
            "device_tokens": DEVICE_TOKENS,
            "hicache_ratio": HICACHE_RATIO,
            "kv_bytes_per_token": kv_bytes,
        },
    )
    runs: dict[str, ArmRun] = {}
    rows: list[dict[str, Any]] = []
    for gb_per_s in options.speeds:
        speed = speed_name(gb_per_s)
        group = [*arms(gb_per_s, kv_bytes), Arm(f"{speed}: limit", "stock", LIMIT_TOKENS)]
        made = run_rings(group, ring, options.rounds)
        runs |= made
        written = [
            run.written(kind=kind, speed=speed, gb_per_s=gb_per_s)
            for kind, run in zip((*KINDS, "limit"), made.values(), strict=True)
        ]
        rows += [{**row, "ratios": ratios(row, written[0], written[-1])} for row in written]
        comparison.write(runs, rows)


if __name__ == "__main__":
    main()
