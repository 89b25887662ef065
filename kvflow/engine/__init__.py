"""Start SGLang with the right flags, on CUDA or on a machine that has none."""

from kvflow.engine.command import EngineCommand, build_command
from kvflow.engine.launch import EngineProcess, exec_engine, free_port, prepare
from kvflow.engine.model import resolve_model
from kvflow.engine.options import EngineOptions
from kvflow.engine.paths import cache_dir

__all__ = [
    "EngineCommand",
    "EngineOptions",
    "EngineProcess",
    "build_command",
    "cache_dir",
    "exec_engine",
    "free_port",
    "prepare",
    "resolve_model",
]
