"""The flags that SGLang needs here, by device; everything else is KVFlow's own launcher."""

from __future__ import annotations

from types import MappingProxyType
from typing import Final

from kvflow.engine.device import ConcreteDevice

__all__ = ["CORRECTNESS_DTYPE", "engine_flags"]

CORRECTNESS_DTYPE: Final = MappingProxyType({"cuda": "float16", "cpu": "float32"})
"""Of the two 16-bit formats that the GPU's kernels take, the one with more digits."""

# No tokenizer: prompts are token ids. The attention kernels are Triton's, as those of the other
# backends are either not packed (fa3) or would have to be fetched (flashinfer).
_COMMON: Final = ("--skip-tokenizer-init", "--grammar-backend", "none")
_CUDA: Final = (
    *("--attention-backend", "triton"),
    *("--sampling-backend", "pytorch"),
    "--disable-prefill-cuda-graph",
    # Of what is free when the engine starts. The sizes of the pools are given, so the rest is for
    # activations, which the default leaves far more to than these models take.
    *("--mem-fraction-static", "0.92"),
)


def engine_flags(
    device: ConcreteDevice, *, dummy: bool, max_running: int, context_tokens: int
) -> tuple[str, ...]:
    """SGLang flags for an engine of this benchmark.

    Args:
        dummy: whether the checkpoint is a ``config.json`` alone.
        max_running: requests at once; decoding is captured in CUDA graphs up to there.
    """
    flags = (
        *_COMMON,
        *("--max-running-requests", str(max_running)),
        *("--context-length", str(context_tokens)),
        *(("--load-format", "dummy") if dummy else ()),
    )
    if device == "cpu":
        return flags
    return (*flags, *_CUDA, "--cuda-graph-max-bs-decode", str(max_running))
