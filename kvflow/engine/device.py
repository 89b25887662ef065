"""Which device the engine runs on, decided without importing torch."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping
from importlib import metadata
from typing import Literal

from kvflow.errors import EnvironmentProblemError

__all__ = ["ConcreteDevice", "Device", "choose_device", "torch_is_cpu_build", "visible_gpus"]

Device = Literal["auto", "cpu", "cuda"]
ConcreteDevice = Literal["cpu", "cuda"]


def visible_gpus(environ: Mapping[str, str] | None = None) -> tuple[str, ...]:
    """Name the NVIDIA GPUs that the driver reports; empty without a working driver.

    A ``CUDA_VISIBLE_DEVICES`` that hides them all counts.
    """
    environ = os.environ if environ is None else environ
    if environ.get("CUDA_VISIBLE_DEVICES", "all").strip() in {"", "-1"}:
        return ()
    program = shutil.which("nvidia-smi", path=environ.get("PATH"))
    if program is None:
        return ()
    command = [program, "--query-gpu=name", "--format=csv,noheader"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)  # noqa: S603 - fixed arguments
    except (OSError, subprocess.SubprocessError):
        return ()
    return tuple(line.strip() for line in answer.stdout.splitlines() if line.strip())


def torch_is_cpu_build() -> bool | None:
    """Tell a CPU build of torch from a CUDA build by its version; None if there is no torch."""
    try:
        return "+cpu" in metadata.version("torch")
    except metadata.PackageNotFoundError:
        return None


def choose_device(
    wanted: Device, gpus: tuple[str, ...], torch_cpu_build: bool | None
) -> ConcreteDevice:
    """Resolve ``auto``, and refuse ``cuda`` where it cannot work.

    ``auto`` is CUDA where there is both a GPU and a torch that can use it.

    Raises:
        EnvironmentProblemError: ``cuda`` was asked for and there is no GPU, or torch cannot use it.
    """
    if wanted == "cpu":
        return "cpu"
    if wanted == "auto":
        return "cuda" if gpus and torch_cpu_build is False else "cpu"
    if not gpus:
        raise EnvironmentProblemError(
            "--device cuda: no NVIDIA GPU is visible (nvidia-smi lists none)",
            "check the driver and CUDA_VISIBLE_DEVICES, or use --device cpu",
        )
    if torch_cpu_build:
        raise EnvironmentProblemError(
            "--device cuda: the installed torch is a CPU build",
            "install the CUDA stack with `make install DEVICE=cuda`, or use --device cpu",
        )
    return "cuda"
