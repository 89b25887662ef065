"""Fetches ahead of need from a storage tier, on a ring of agents.

``python -m benchmarks.prefetch.storage`` compares stock SGLang, KVFlow that only orders eviction
and KVFlow that prefetches too, where device and host pool hold about half of the prompts each and
files all of them; and, for reference, stock SGLang with host memory for everything and no files.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict
from tempfile import TemporaryDirectory
from typing import Final

from benchmarks.environment import describe_environment, write_result
from benchmarks.prefetch.engines import ENGINE_SEED, Arm, arguments, run_rings
from benchmarks.prefetch.workload import Ring, differences

__all__ = ["ARMS"]

DEVICE_TOKENS: Final = 6144
HICACHE_RATIO: Final = 1.1
EVERYTHING_RATIO: Final = 4.0
FOLDER_VARIABLE: Final = "SGLANG_HICACHE_FILE_BACKEND_STORAGE_DIR"
STORAGE: Final = (
    *("--hicache-storage-backend", "file"),
    *("--hicache-storage-prefetch-policy", "wait_complete"),
)
ARMS: Final = (
    Arm("stock", "stock", DEVICE_TOKENS, HICACHE_RATIO, extra_args=STORAGE),
    Arm(
        "kvflow, no prefetch",
        "kvflow",
        DEVICE_TOKENS,
        HICACHE_RATIO,
        prefetch=False,
        extra_args=STORAGE,
    ),
    Arm("kvflow", "kvflow", DEVICE_TOKENS, HICACHE_RATIO, extra_args=STORAGE),
    Arm("stock, host memory for all", "stock", DEVICE_TOKENS, EVERYTHING_RATIO),
)


def main(argv: Sequence[str] | None = None) -> None:
    parser = arguments(__doc__, "storage", rounds=1)
    parser.add_argument("--agents", type=int, default=16)
    options = parser.parse_args(argv)
    begun_s = time.monotonic()
    environment = describe_environment()
    ring = Ring(agents=options.agents, prefix_words=780, seed=options.seed)
    with ExitStack() as stack:
        folders = {
            arm.name: {
                FOLDER_VARIABLE: stack.enter_context(TemporaryDirectory(prefix="kvflow-storage-"))
            }
            for arm in ARMS
            if arm.extra_args
        }
        runs = run_rings(ARMS, ring, options.rounds, folders)
    rows = [run.written(kind=name) for name, run in runs.items()]
    different = differences({name: run.calls for name, run in runs.items()})
    write_result(
        options.output,
        {
            "environment": environment,
            "seeds": {"text": options.seed, "engine": ENGINE_SEED},
            "settings": {
                **asdict(ring),
                "measured_rounds": options.rounds,
                "device_tokens": DEVICE_TOKENS,
                "hicache_ratio": HICACHE_RATIO,
            },
            "outputs_identical": not different,
            "differences": different,
            "arms": rows,
            "took_s": time.monotonic() - begun_s,
        },
    )
    print(f"outputs identical: {not different}; {options.output}")


if __name__ == "__main__":
    main()
