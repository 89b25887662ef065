"""This machine: versions and hardware, as what was measured on it is written down."""

from __future__ import annotations

import os
import platform
from importlib import metadata
from pathlib import Path

import kvflow

__all__ = ["available_bytes", "cpu_model", "hardware", "versions"]


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
        "cpu": cpu_model(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        "gpus": list(gpus),
        "os": platform.platform(),
    }


def cpu_model(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """The CPU's name, or its architecture's where the kernel does not tell."""
    found = _value(cpuinfo, "model name")
    return found or platform.processor() or platform.machine()


def available_bytes(meminfo: Path = Path("/proc/meminfo")) -> int | None:
    """Memory that can be had without swapping, as the kernel estimates it; None if it does not."""
    found = _value(meminfo, "MemAvailable")
    return int(found.split()[0]) * 1024 if found else None


def _value(table: Path, name: str) -> str:
    """What the first line of this name says; empty without one."""
    try:
        lines = table.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    pairs = (line.partition(":") for line in lines)
    return next((text.strip() for key, _, text in pairs if key.strip() == name), "")
