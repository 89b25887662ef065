"""On what the demo ran: versions and hardware."""

from __future__ import annotations

import os
import platform
from importlib import metadata
from pathlib import Path

import kvflow

__all__ = ["hardware", "versions"]


def versions() -> dict[str, str]:
    """Versions of what takes part, by name; what is not installed is left out."""
    found = {"kvflow": kvflow.__version__, "python": platform.python_version()}
    for package in ("sglang", "torch", "transformers", "openai"):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def hardware(device: str, gpus: tuple[str, ...]) -> dict[str, str | int | float | list[str]]:
    """The machine, in what matters for the figures."""
    return {
        "device": device,
        "cpu": _cpu_model(Path("/proc/cpuinfo")) or platform.processor() or platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        "gpus": list(gpus),
        "os": platform.platform(),
    }


def _cpu_model(cpuinfo: Path) -> str:
    try:
        lines = cpuinfo.read_text(errors="replace").splitlines()
    except OSError:
        return ""
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, "")
