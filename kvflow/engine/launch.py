"""The command that starts SGLang on this machine, and SGLang in place of this process."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from importlib.metadata import entry_points, version
from importlib.util import find_spec
from types import MappingProxyType
from typing import Final, NoReturn

from kvflow.engine.command import EngineCommand, build_command
from kvflow.engine.device import choose_device, torch_is_cpu_build, visible_gpus
from kvflow.engine.flags import flag_value
from kvflow.engine.model import resolve_model
from kvflow.engine.options import EngineOptions
from kvflow.engine.paths import cache_dir
from kvflow.engine.ports import refuse_taken_port
from kvflow.engine.run_dir import RunDir, remove_stale_run_dirs
from kvflow.errors import EnvironmentProblemError

__all__ = ["exec_engine", "prepare"]

_PLUGIN_GROUP: Final = "sglang.srt.plugins"


def prepare(
    options: EngineOptions, progress: Callable[[str], None] = lambda _line: None
) -> EngineCommand:
    """Resolve device and model on this machine and work out the command.

    Converts ``smollm2`` if that was never done here, which takes about a minute.

    Raises:
        EnvironmentProblemError: SGLang, the device or the model is missing.
        InvalidInputError: an option or an SGLang flag is wrong.
    """
    if find_spec("sglang") is None:
        raise EnvironmentProblemError(
            "SGLang is not installed in this Python environment",
            "on a machine without CUDA run `make install` in a checkout of KVFlow; "
            "on a CUDA machine run `pip install 'kvflow[sglang]'`",
        )
    environ = {**os.environ, **options.env}
    device = choose_device(options.device, visible_gpus(environ), torch_is_cpu_build())
    model_path = flag_value(options.extra_args, "--model-path")
    return build_command(
        options,
        model_path=model_path or resolve_model(options.model, progress),
        device=device,
        environ=_with_cache_folders(os.environ),
        cores=sorted(os.sched_getaffinity(0)),
        sglang_version=version("sglang"),
        other_plugins=[
            entry.name
            for entry in entry_points(group=_PLUGIN_GROUP)
            if not entry.value.startswith("kvflow.")
        ],
    )


def exec_engine(command: EngineCommand) -> NoReturn:
    """Replace this process by the engine, so that signals and the exit status are its own.

    Raises:
        EnvironmentProblemError: something listens on the engine's port. SGLang would say so only
            after it has loaded the model, and its plugin would meanwhile report to the service
            under the name of the engine that is there already.
    """
    refuse_taken_port(command.host, command.port)
    remove_stale_run_dirs()
    run_dir = RunDir()
    run_dir.keep_over_exec()
    env = {**command.env, "TMPDIR": str(run_dir.path)}
    os.execvpe(command.argv[0], list(command.argv), env)  # noqa: S606 - no shell is the point


def _with_cache_folders(environ: Mapping[str, str]) -> Mapping[str, str]:
    """Send what SGLang and Triton compile to KVFlow's cache folder, unless the user chose one."""
    cache = cache_dir(environ)
    return MappingProxyType(
        {
            "SGLANG_CACHE_DIR": str(cache / "sglang"),
            "TRITON_CACHE_DIR": str(cache / "triton"),
            **environ,
        }
    )
