"""KVFlow's plugin for SGLang (entry point group ``sglang.srt.plugins``)."""

from kvflow.sglang_plugin.runtime import PluginRuntime, register

__all__ = ["PluginRuntime", "register"]
