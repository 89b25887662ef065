"""How fast this machine copies, computes and reads: ``python -m benchmarks.gpu.rates``.

A process of its own, so that none of the device's memory is kept while engines run.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from benchmarks.gpu.floor import Rates
from kvflow.engine.device import ConcreteDevice

__all__ = ["measure_rates"]

_REPEATS: Final = 5
_LIMIT_S: Final = 120
_CUDA_COPY_BYTES: Final = 1 << 30
_CPU_COPY_BYTES: Final = 1 << 26
_CUDA_MATRIX: Final = 8192
_CPU_MATRIX: Final = 1024


def measure_rates(device: ConcreteDevice, folder: Path) -> Rates:
    """Measure in a process of its own; ``folder``: on the storage tier's disk.

    Raises:
        RuntimeError: it could not be measured.
    """
    command = [sys.executable, "-m", "benchmarks.gpu.rates", "--device", device, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=_LIMIT_S)
    if done.returncode != 0:
        raise RuntimeError(f"rates could not be measured:\n{done.stderr[-2000:]}")
    return Rates(**json.loads(done.stdout.splitlines()[-1]))


def _measured(device: ConcreteDevice, folder: Path) -> Rates:
    import torch

    cuda = device == "cuda"
    size = _CUDA_COPY_BYTES if cuda else _CPU_COPY_BYTES
    edge = _CUDA_MATRIX if cuda else _CPU_MATRIX
    dtype = torch.bfloat16 if cuda else torch.float32
    wait: Callable[[], Any] = torch.cuda.synchronize if cuda else lambda: None

    host = torch.empty(size, dtype=torch.uint8, pin_memory=cuda)
    there = torch.empty(size, dtype=torch.uint8, device=device)
    load_s = _median_s(lambda: there.copy_(host, non_blocking=True), wait)
    other = torch.empty_like(there)
    # A copy within the device reads once and writes once.
    copy_s = _median_s(lambda: other.copy_(there), wait)
    left = torch.randn(edge, edge, dtype=dtype, device=device)
    right = torch.randn(edge, edge, dtype=dtype, device=device)
    product_s = _median_s(lambda: left @ right, wait)
    return Rates(
        load_bytes_per_s=size / load_s,
        flops_per_s=2 * edge**3 / product_s,
        memory_bytes_per_s=2 * size / copy_s,
        storage_bytes_per_s=_storage_bytes_per_s(folder, size),
    )


def _median_s(work: Callable[[], Any], wait: Callable[[], Any]) -> float:
    """The median of a few, after one that is not counted."""
    times = []
    for _ in range(_REPEATS + 1):
        wait()
        begun_s = time.perf_counter()
        work()
        wait()
        times.append(time.perf_counter() - begun_s)
    return statistics.median(times[1:])


def _storage_bytes_per_s(folder: Path, size: int) -> float | None:
    """Reading a file that is not in the page cache; None where that cannot be arranged."""
    if not hasattr(os, "posix_fadvise"):
        return None
    block = os.urandom(1 << 22)
    with tempfile.NamedTemporaryFile(dir=folder) as file:
        for _ in range(size // len(block)):
            file.write(block)
        file.flush()
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        with open(file.name, "rb", buffering=0) as reading:
            begun_s = time.perf_counter()
            while reading.read(len(block)):
                pass
            return size / (time.perf_counter() - begun_s)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--device", choices=("cuda", "cpu"), required=True)
    parser.add_argument("folder", type=Path)
    given = parser.parse_args()
    print(json.dumps(asdict(_measured(given.device, given.folder))))


if __name__ == "__main__":
    main()
