"""The command line and environment that start SGLang.  Starts nothing."""

from __future__ import annotations

import os
import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Final

from kvflow.engine.cpu_support import CPU_ENGINE_VARIABLE
from kvflow.engine.device import ConcreteDevice
from kvflow.engine.flags import Flag, flag_value, merge_flags
from kvflow.engine.options import EngineOptions
from kvflow.errors import InvalidInputError

__all__ = ["STAND_INS_DIR", "EngineCommand", "build_command", "cores_per_rank"]

STAND_INS_DIR: Final = Path(__file__).parent / "standins"

# Lists: what the caller puts there is added to what an engine needs, and does not replace it.
_MERGED_VARIABLES: Final = frozenset({"PYTHONPATH", "SGLANG_PLUGINS"})

_KVFLOW_PLUGIN: Final = "kvflow"
_CPU_PLUGIN: Final = "kvflow_cpu"
_THREADS_BIND: Final = "SGLANG_CPU_OMP_THREADS_BIND"

# Read on the CPU with float32: the torch-native kernels are exact there, and 16-bit formats slower.
# Sleeping when idle leaves the cores to others.
_CPU_FLAGS: Final[tuple[Flag, ...]] = (
    ("--device", "cpu"),
    ("--dtype", "float32"),
    ("--attention-backend", "torch_native"),
    ("--sampling-backend", "pytorch"),
    ("--disable-cuda-graph", None),
    ("--mem-fraction-static", "0.5"),
    ("--max-running-requests", "8"),
    ("--sleep-on-idle", None),
    ("--skip-server-warmup", None),
)
_CPU_PAGE_SIZE: Final = 16
_CPU_MAX_TOTAL_TOKENS: Final = 16384

# The oldest version known to allocate pages and to follow grammars without a GPU; 0.5.17 cannot.
_FULLY_ON_CPU_SINCE: Final = (0, 5, 23)

_CPU_HICACHE_FLAGS: Final[tuple[Flag, ...]] = (
    ("--hicache-io-backend", "direct"),
    ("--hicache-mem-layout", "layer_first"),
)
_COMMON_FLAGS: Final[tuple[Flag, ...]] = (
    ("--enable-cache-report", None),
    ("--enable-metrics", None),
)


@dataclass(frozen=True, slots=True)
class EngineCommand:
    """A command line with the environment it needs, and the address it will listen on."""

    argv: tuple[str, ...]
    env: Mapping[str, str]
    host: str
    port: int

    @property
    def model_path(self) -> str | None:
        """The checkpoint that the engine serves."""
        return flag_value(self.argv, "--model-path")

    def shown_flags(self, model: str) -> list[str]:
        """SGLang's flags, with ``model`` in place of the folder it is in on this machine."""
        begin = self.argv.index("sglang.launch_server") + 1
        path, attached = self.model_path, f"--model-path={self.model_path}"
        names = {path: model, attached: f"--model-path={model}"}
        return [names.get(flag, flag) for flag in self.argv[begin:]]

    def as_shell(self, environ: Mapping[str, str] | None = None) -> str:
        """The command as one would type it, with the variables that differ from ``environ``."""
        environ = os.environ if environ is None else environ
        changed = {name: text for name, text in self.env.items() if environ.get(name) != text}
        return shlex.join(
            ["env", *(f"{name}={changed[name]}" for name in sorted(changed)), *self.argv]
        )


def build_command(
    options: EngineOptions,
    *,
    model_path: str,
    device: ConcreteDevice,
    environ: Mapping[str, str],
    cores: Sequence[int],
    sglang_version: str,
    other_plugins: Sequence[str] = (),
) -> EngineCommand:
    """Work out how to start SGLang.

    Args:
        model_path: the checkpoint, already resolved (``options.model`` may be a name).
        device: the device, already resolved (``options.device`` may be ``auto``).
        environ: the caller's environment, on which the engine's is built.
        cores: the CPU cores this process may use.
        sglang_version: the installed SGLang, e.g. ``"0.5.23"``.
        other_plugins: installed SGLang plugins that are not KVFlow's; they stay loaded.

    Raises:
        InvalidInputError: an SGLang flag contradicts an option of ours, or is no number.
    """
    _refuse_contradictions(options.extra_args, device)
    arguments = merge_flags(_flags(options, model_path, device, sglang_version), options.extra_args)
    environ = {**environ, **options.env}
    env = dict(environ)
    env["SGLANG_PLUGINS"] = ",".join(_plugins(options, environ, other_plugins))
    env.setdefault("TOKENIZERS_PARALLELISM", "false")
    if Path(model_path).is_dir():
        env.setdefault("HF_HUB_OFFLINE", "1")
    if device == "cpu":
        env |= _cpu_variables(environ)
        ranks = _number(arguments, "--tp-size", 1)
        if ranks > 1:
            env.setdefault(_THREADS_BIND, cores_per_rank(ranks, cores))
    env |= {name: text for name, text in options.env.items() if name not in _MERGED_VARIABLES}
    return EngineCommand(
        argv=(sys.executable, "-m", "sglang.launch_server", *arguments),
        env=MappingProxyType(env),
        host=flag_value(arguments, "--host") or options.host,
        port=_number(arguments, "--port", options.port, most=65535),
    )


def cores_per_rank(ranks: int, cores: Sequence[int]) -> str:
    """Divide the cores among tensor parallel ranks, in SGLang's notation.

    SGLang does so by itself only up to one rank per NUMA node.  Ranks share cores where there are
    fewer cores than ranks.

    >>> cores_per_rank(2, [0, 1, 2, 3]), cores_per_rank(3, [0, 1])
    ('0,1|2,3', '0|1|0')
    """
    if ranks > len(cores):
        return "|".join(str(cores[rank % len(cores)]) for rank in range(ranks))
    share, extra = divmod(len(cores), ranks)
    parts, start = [], 0
    for rank in range(ranks):
        end = start + share + (rank < extra)
        parts.append(",".join(map(str, cores[start:end])))
        start = end
    return "|".join(parts)


def _flags(
    options: EngineOptions, model_path: str, device: ConcreteDevice, sglang_version: str
) -> list[Flag]:
    page_size, max_total_tokens = options.page_size, options.max_total_tokens
    flags: list[Flag] = [
        ("--model-path", model_path),
        ("--host", options.host),
        ("--port", str(options.port)),
        *_COMMON_FLAGS,
    ]
    if device == "cpu":
        flags += _CPU_FLAGS
        if _release(sglang_version) < _FULLY_ON_CPU_SINCE:
            flags.append(("--grammar-backend", "none"))
            page_size = page_size or 1
        page_size = page_size or _CPU_PAGE_SIZE
        max_total_tokens = max_total_tokens or _CPU_MAX_TOTAL_TOKENS
    if options.radix == "kvflow":
        flags.append(("--radix-cache-backend", "kvflow"))
    if page_size is not None:
        flags.append(("--page-size", str(page_size)))
    if max_total_tokens is not None:
        flags.append(("--max-total-tokens", str(max_total_tokens)))
    if options.tp > 1:
        flags.append(("--tp-size", str(options.tp)))
    if options.hicache_ratio is not None:
        flags += [
            ("--enable-hierarchical-cache", None),
            ("--hicache-ratio", f"{options.hicache_ratio:g}"),
            ("--hicache-write-policy", "write_through"),
        ]
    if device == "cpu":
        # Harmless without a host tier, and right if the user's own flags ask for one.
        flags += _CPU_HICACHE_FLAGS
    return flags


def _number(arguments: Sequence[str], flag: str, otherwise: int, most: int | None = None) -> int:
    """The value of an SGLang flag that the user may have given.

    Raises:
        InvalidInputError: it is no number from 1 to ``most``.
    """
    text = flag_value(arguments, flag)
    if text is None:
        return otherwise
    number = int(text) if text.isdecimal() else 0
    if number < 1 or (most is not None and number > most):
        raise InvalidInputError(
            ["sglang flags", flag],
            f"{text!r} has to be a whole number, " + (f"1 to {most}" if most else "1 or more"),
        )
    return number


def _release(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version)[:3])


def _plugins(
    options: EngineOptions, environ: Mapping[str, str], other_plugins: Sequence[str]
) -> list[str]:
    """Name every plugin to load: an empty list would mean all of them to SGLang."""
    chosen = environ.get("SGLANG_PLUGINS", "")
    others = [name.strip() for name in chosen.split(",")] if chosen else other_plugins
    ours = [_KVFLOW_PLUGIN, _CPU_PLUGIN] if options.radix == "kvflow" else [_CPU_PLUGIN]
    return [
        *(name for name in others if name and name not in {_KVFLOW_PLUGIN, _CPU_PLUGIN}),
        *ours,
    ]


def _cpu_variables(environ: Mapping[str, str]) -> dict[str, str]:
    search_path = [str(STAND_INS_DIR), *filter(None, [environ.get("PYTHONPATH")])]
    return {
        "SGLANG_USE_CPU_ENGINE": "1",
        CPU_ENGINE_VARIABLE: "1",
        "PYTHONPATH": ":".join(search_path),
        "CUDA_VISIBLE_DEVICES": "",
        # Threads that spin while they wait for each other bring a machine that has anything else
        # to do almost to a halt.
        "OMP_WAIT_POLICY": environ.get("OMP_WAIT_POLICY", "PASSIVE"),
    }


def _refuse_contradictions(extra_args: Sequence[str], device: ConcreteDevice) -> None:
    wanted = flag_value(extra_args, "--device")
    if wanted is not None and wanted != device:
        raise InvalidInputError(
            ["sglang flags", "--device"],
            f"{wanted!r} contradicts the device chosen, {device!r}; leave it out and use "
            f"`kvflow engine --device {wanted}`",
        )
