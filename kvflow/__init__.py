"""KVFlow: workflow-aware KV cache for multi-agent LLM serving on SGLang."""

__version__ = "0.1.0"

__all__ = ["__version__"]
