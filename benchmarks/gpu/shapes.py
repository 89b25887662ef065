"""Models by their shapes: a ``config.json`` is all that dummy weights need."""

from __future__ import annotations

import json
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

from kvflow.simulator.presets import MODELS, ModelShape

__all__ = ["CORRECTNESS", "SHAPES", "config_of", "write_config"]

SHAPES: Final = MappingProxyType(
    {
        "llama-3.1-8b": MODELS["llama-3.1-8b"],
        "qwen2.5-32b": MODELS["qwen2.5-32b"],
        "tiny": ModelShape(2, 64, 128, 4, 2, 16, 2048, False, "made up, for a dry run"),
    }
)

CORRECTNESS: Final = ModelShape(
    *(4, 512, 1024, 8, 4, 64, 4096, False), "made up: small, and with weights worth comparing"
)
"""Layers, hidden, intermediate, heads, KV heads, head size, vocabulary."""

_LLAMA_31: Final[dict[str, Any]] = {
    "rope_theta": 500_000.0,
    "rope_scaling": {
        **{"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0},
        **{"high_freq_factor": 4.0, "original_max_position_embeddings": 8192},
    },
    "max_position_embeddings": 131_072,
    "bos_token_id": 128_000,
    "eos_token_id": 128_001,
}
_QWEN_25: Final[dict[str, Any]] = {
    "architectures": ["Qwen2ForCausalLM"],
    "model_type": "qwen2",
    "rope_theta": 1_000_000.0,
    "max_position_embeddings": 131_072,
    "bos_token_id": 151_643,
    "eos_token_id": 151_643,
}
_SMALL: Final[dict[str, Any]] = {
    "rope_theta": 10_000.0,
    "max_position_embeddings": 16_384,
    "bos_token_id": 0,
    "eos_token_id": 1,
}
_OTHERS: Final = MappingProxyType({"llama-3.1-8b": _LLAMA_31, "qwen2.5-32b": _QWEN_25})


def config_of(shape: ModelShape, name: str, dtype: str) -> dict[str, Any]:
    """The ``config.json`` of a Llama-like model; ``name`` decides what its shape does not say."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "num_hidden_layers": shape.layers,
        "hidden_size": shape.hidden,
        "intermediate_size": shape.intermediate,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.head_dim,
        "vocab_size": shape.vocabulary,
        "tie_word_embeddings": shape.tied,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-5,
        "attention_bias": False,
        "mlp_bias": False,
        "torch_dtype": dtype,
        **_OTHERS.get(name, _SMALL),
    }


def write_config(folder: Path, name: str, dtype: str = "bfloat16") -> Path:
    """A folder that ``--load-format dummy`` takes for a checkpoint of the shape named."""
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(config_of(SHAPES[name], name, dtype), indent=1)
    (folder / "config.json").write_text(text + "\n", encoding="utf-8")
    return folder
