"""Fetches ahead of need from a storage tier, on a ring of agents.

``python -m benchmarks.prefetch.storage`` compares stock SGLang, KVFlow that only orders eviction
and KVFlow that prefetches too, where device and host pool hold about half of the prompts each and
files all of them; and, for reference, stock SGLang with host memory for everything and no files.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict
from tempfile import TemporaryDirectory
from typing import Final

from benchmarks.prefetch.engines import Arm, Comparison, arguments, run_rings
from benchmarks.prefetch.workload import Ring

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
    ring = Ring(agents=options.agents, prefix_words=780, seed=options.seed)
    comparison = Comparison(
        options.output,
        options.seed,
        {
            **asdict(ring),
            "measured_rounds": options.rounds,
            "device_tokens": DEVICE_TOKENS,
            "hicache_ratio": HICACHE_RATIO,
        },
    )
    with ExitStack() as stack:
        folders = {
            arm.name: {
                FOLDER_VARIABLE: stack.enter_context(TemporaryDirectory(prefix="kvflow-storage-"))
            }
            for arm in ARMS
            if arm.extra_args
        }
        runs = run_rings(ARMS, ring, options.rounds, folders)
    comparison.write(runs, [run.written(kind=name) for name, run in runs.items()])


if __name__ == "__main__":
    main()
