"""What ``run`` does before anything can be imported: look at the machine, install the wheels.

Needs nothing but Python. The wheels go into a folder of their own outside the checkout, which is
put before the machine's packages; those, torch above all, stay as they are.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Final

from benchmarks.gpu.pieces import MANIFEST, join, read_manifest

__all__ = ["Finding", "InstallError", "install", "probe"]

_OLDEST_GLIBC: Final = (2, 34)
_INSTALLED_BYTES: Final = 3 * 1024**3


class InstallError(Exception):
    """What could not be installed, and why."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing the machine has to have; ``problem`` is empty where it is as it should be."""

    what: str
    found: str
    problem: str = ""


def probe(manifest: Mapping[str, Any], environ: Mapping[str, str] = os.environ) -> list[Finding]:
    """Look for what the packed wheels take for granted. Imports none of it."""
    findings = [_python(manifest["python"]), _glibc(), _gpu(manifest["arch"])]
    for assumed in manifest["assumed"]:
        findings.append(_package(assumed["name"], assumed["version"]))
    for program in ("nvcc", "ninja"):
        path = shutil.which(program, path=environ.get("PATH"))
        missing = "" if path else "SGLang compiles kernels when it first needs them; put it on PATH"
        findings.append(Finding(program, path or "none", missing))
    return findings


def _python(wanted: str) -> Finding:
    found = f"{sys.version_info[0]}.{sys.version_info[1]}"
    problem = "" if found == wanted else f"the wheels are for {wanted}; pack with --python {found}"
    return Finding("python", platform.python_version(), problem)


def _glibc() -> Finding:
    library, version = platform.libc_ver()
    found = tuple(int(part) for part in version.split(".")[:2]) if library == "glibc" else ()
    problem = "" if found >= _OLDEST_GLIBC else "SGLang's wheels need glibc 2.34 or newer"
    return Finding("libc", f"{library} {version}".strip() or "unknown", problem)


def _gpu(arch: str) -> Finding:
    program = shutil.which("nvidia-smi")
    if program is None:
        return Finding("gpu", "none", "there is no nvidia-smi, so no driver")
    command = [program, "--query-gpu=name,compute_cap,memory.total", "--format=csv,noheader"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    lines = [line.strip() for line in done.stdout.splitlines() if line.strip()]
    if done.returncode != 0 or not lines:
        return Finding("gpu", "none", "nvidia-smi lists none")
    capability = lines[0].split(",")[1].strip()
    fitting = arch == "all" or (arch == "sm90") == (capability == "9.0")
    problem = "" if fitting else f"the kernels packed are {arch}; pack with another --arch"
    return Finding("gpu", lines[0], problem)


def _package(name: str, wanted: str | None) -> Finding:
    try:
        found = metadata.version(name)
    except metadata.PackageNotFoundError:
        return Finding(name, "none", f"pack with --ship {name}, or install it")
    release = found.partition("+")[0]
    if wanted is not None and release != wanted:
        return Finding(
            name, found, f"this SGLang asks for {wanted}; pack the one that fits {release}"
        )
    return Finding(name, found)


def install(wheels: Path, cache: Path, say: Callable[[str], None]) -> Path:
    """Install packed wheels below ``cache``; returns the folder to put on ``PYTHONPATH``.

    A folder that is complete is used again.

    Raises:
        InstallError: pip refuses, or there is no room.
        PieceError: a piece is missing or damaged.
    """
    manifest = read_manifest(wheels)
    digest = hashlib.sha256((wheels / MANIFEST).read_bytes()).hexdigest()[:12]
    site = cache / f"gpu-{manifest['sglang']}-{digest}"
    if site.is_dir():
        return site
    cache.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(cache).free
    if free < _INSTALLED_BYTES:
        raise InstallError(f"{cache} has {free / 1e9:.1f} GB free; 3 GB are needed")
    say(f"checking {len(manifest['pieces'])} pieces")
    with tempfile.TemporaryDirectory(prefix="gpu-", dir=cache) as scratch:
        found = join(wheels, Path(scratch, "wheels"))
        unfinished = Path(scratch, "site")
        say(f"installing {len(found)} wheels into {site}")
        command = [
            *(sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"),
            *("--no-index", "--no-deps", "--no-compile", "--no-cache-dir", "--no-warn-conflicts"),
            *("--target", str(unfinished)),
            *map(str, found),
        ]
        environ = {k: v for k, v in os.environ.items() if not k.startswith("PIP_")}
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=environ)
        if done.returncode != 0:
            tail = "\n".join((done.stdout + done.stderr).strip().splitlines()[-12:])
            raise InstallError(f"pip install failed:\n{tail}")
        unfinished.joinpath(MANIFEST).write_text(json.dumps(manifest), encoding="utf-8")
        unfinished.rename(site)
    return site
