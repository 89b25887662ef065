"""What a figure was measured on, and how it is written down."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

from kvflow.engine.machine import cpu_model

__all__ = ["describe_environment", "write_result"]

_PACKAGES = (
    "kvflow",
    "fastapi",
    "httpx2",
    "networkx",
    "openai",
    "prometheus-client",
    "pydantic",
    "pydantic-settings",
    "sglang",
    "starlette",
    "torch",
    "transformers",
    "uvicorn",
)


def describe_environment() -> dict[str, object]:
    """Return versions and hardware, as plain JSON values. Nothing in it names the machine."""
    return {
        "taken_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": _commit(),
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "packages": _package_versions(),
        "os": f"{platform.system()} {platform.release()}",
        "libc": " ".join(platform.libc_ver()),
        "machine": platform.machine(),
        "cpu_model": cpu_model(),
        "cpu_cores": len(os.sched_getaffinity(0)),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "load_average_1min": os.getloadavg()[0],
    }


def write_result(path: Path, payload: Mapping[str, object]) -> None:
    """Write a result as indented JSON; the environment is added unless the payload has it."""
    document = {"environment": describe_environment(), **payload}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")


def _package_versions() -> dict[str, str]:
    versions = {}
    for package in _PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return versions


def _commit() -> str | None:
    """Return the commit of the checkout, with ``+changes`` if files differ from it."""
    root = Path(__file__).parent
    try:
        commit = _git(root, "rev-parse", "HEAD")
        changes = _git(root, "status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.SubprocessError):
        return None
    return f"{commit}+changes" if changes else commit


def _git(root: Path, *arguments: str) -> str:
    command = ["git", "-C", str(root), *arguments]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=30)
    return done.stdout.strip()
