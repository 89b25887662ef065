"""KVFlow against SGLang in small: what each operation costs, all cores in one run.

``python -m benchmarks.plugin.micro`` measures, in this process, an eviction, insert, match and
split, learning, messages, a request's whole way through the cache, and the hooks of an idle step;
it takes under three minutes. ``--engine`` adds real engines with a model of no weight (about six
minutes more). ``--quick`` takes a few samples of small trees, to see that it runs.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from benchmarks.environment import describe_environment, write_result
from benchmarks.plugin import eviction
from benchmarks.plugin.hints import measure_learning, measure_updates
from benchmarks.plugin.hooks import measure_hooks
from benchmarks.plugin.lives import SCENARIOS, Life, measure_lives
from benchmarks.plugin.requests import engine_context
from benchmarks.plugin.trees import TreeShape, measure_trees, quiet_collector

__all__ = ["FULL", "QUICK", "Sizes", "main", "measure"]

RESULT: Final = Path(__file__).parents[1] / "results" / "plugin_micro.json"
SEED: Final = 11


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much to measure."""

    leaves: tuple[int, ...]
    evictions: int
    evictions_at_most_s: float
    shapes: tuple[TreeShape, ...]
    samples: int
    prompts: tuple[int, ...]
    updates: tuple[tuple[int, int], ...]
    lives: tuple[Life, ...]
    requests: int


FULL: Final = Sizes(
    leaves=(1_000, 10_000, 100_000),
    evictions=100,
    evictions_at_most_s=5.0,
    shapes=tuple(TreeShape(n, page) for page in (1, 16) for n in (1_000, 10_000, 100_000)),
    samples=200,
    prompts=(1_000, 8_000, 32_000),
    updates=((1, 10), (10, 10), (100, 10), (1_000, 10), (100, 50)),
    lives=SCENARIOS,
    requests=300,
)
QUICK: Final = Sizes(
    leaves=(100,),
    evictions=5,
    evictions_at_most_s=1.0,
    shapes=(TreeShape(100, 1, (100,)), TreeShape(100, 16, (160,))),
    samples=4,
    prompts=(200,),
    updates=((1, 4), (3, 4)),
    lives=(SCENARIOS[1], SCENARIOS[3]),
    requests=12,
)


def measure(sizes: Sizes, *, engine_turns: int = 0) -> dict[str, Any]:
    """All parts; of the real engines if ``engine_turns`` is not 0."""
    begun_s = time.monotonic()
    with engine_context():
        result: dict[str, Any] = {
            "seed": SEED,
            "eviction": _evictions(sizes),
            "trees": [row for shape in sizes.shapes for row in measure_trees(shape, sizes.samples)],
            "learning": [measure_learning(n, sizes.samples, SEED) for n in sizes.prompts],
            "updates": [measure_updates(w, a, sizes.samples // 4) for w, a in sizes.updates],
            "requests": [measure_lives(life, sizes.requests) for life in sizes.lives],
            "hooks": measure_hooks(sizes.samples),
        }
    result["took_s"] = round(time.monotonic() - begun_s, 1)
    result["engine"] = None
    if engine_turns:
        from benchmarks.plugin.engine import measure_engines

        result["engine"] = measure_engines(engine_turns)
    return result


def _evictions(sizes: Sizes) -> list[dict[str, Any]]:
    with quiet_collector():
        rows = [
            eviction.measure(core, tier, leaves, sizes.evictions, sizes.evictions_at_most_s)
            for leaves in sizes.leaves
            for tier in ("device", "host")
            for core in eviction.CORES
        ]
    return [eviction.thinned(row) for row in rows]


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="few samples of small trees")
    parser.add_argument(
        "--engine", type=int, metavar="TURNS", nargs="?", const=40, default=0, help="real engines"
    )
    parser.add_argument("--output", type=Path, default=RESULT)
    options = parser.parse_args(argv)
    environment = describe_environment()
    result = measure(QUICK if options.quick else FULL, engine_turns=options.engine)
    write_result(options.output, {"environment": environment, **result})
    print(f"{options.output}; {result['took_s']} s without engines")


if __name__ == "__main__":
    main()
