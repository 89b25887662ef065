"""Start SGLang with the right flags, on CUDA or on a machine that has none."""

from kvflow.engine.command import EngineCommand, build_command
from kvflow.engine.launch import exec_engine, prepare
from kvflow.engine.model import resolve_model
from kvflow.engine.options import EngineOptions
from kvflow.engine.paths import cache_dir
from kvflow.engine.ports import free_port
from kvflow.engine.process import EngineProcess

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
