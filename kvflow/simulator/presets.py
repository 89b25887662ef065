"""Cost models of well-known GPUs and models, from published figures.

Each constant is a data sheet's, a model's ``config.json``'s, SGLang's default, or a named
assumption; nothing here was measured by us. The presets say which way a comparison goes and by
about how much, not what a given machine does: for that, fit a model to it (`fitting`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final, Literal

from kvflow.errors import InvalidInputError
from kvflow.prefetch import Link
from kvflow.simulator.costs import CostModel

__all__ = [
    "GPUS",
    "MODELS",
    "Gpu",
    "GpuName",
    "ModelName",
    "ModelShape",
    "cost_model",
    "device_tokens",
    "sglang_mem_fraction",
]

GpuName = Literal["a10g", "l4", "a100", "h100", "h200"]
ModelName = Literal["llama-3.1-8b", "qwen2.5-32b", "smollm2-135m"]

BYTES_PER_VALUE: Final = 2
"""bfloat16, weights and KV."""

PREFILL_FLOPS_FRACTION: Final = 0.5
"""Assumption: share of the dense peak that a prefill reaches. Large GEMMs alone reach 0.6 to 0.75
(CUTLASS 3.x reports 600 to 750 of 989 TFLOPS on H100), whole prefills less."""

MEMORY_FRACTION: Final = 0.7
"""Assumption: share of the peak memory bandwidth that a decode step reaches. 0.6 to 0.85 is
reported for serving stacks ("model bandwidth utilization")."""

STEP_OVERHEAD_S: Final = 0.0005
"""Assumption: what a step takes besides the model. SGLang's overlapped scheduler hides most of its
own work behind the step before (SGLang v0.4, "zero-overhead batch scheduler")."""

COPY_LATENCY_S: Final = 0.0001
"""Assumption: to launch a copy between host and device, over all layers."""

STORAGE_BYTES_PER_S: Final = 6.9e9
"""Sequential read of one data-centre NVMe drive on PCIe 4.0 x4 (Samsung PM9A3 data sheet)."""

STORAGE_LATENCY_S: Final = 0.001
"""Assumption: to open and read a first page's file."""

_PCIE_4_X16: Final = 24.8e9
"""Bytes/s host to device as nvbandwidth measures it on A100-SXM4-80GB (NVIDIA developer forum,
thread 352186: 24.8 GB/s); nominal 31.5 GB/s."""

_PCIE_5_X16: Final = 55.6e9
"""Likewise on Hopper (NVIDIA's nvbandwidth example: 55.63 GB/s); nominal 63 GB/s."""

_MIB: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class Gpu:
    """One GPU.

    Attributes:
        bf16_flops: dense peak, per second; data sheets often print twice that, with sparsity.
        memory_bytes_per_s: peak.
        memory_mib: what ``nvidia-smi`` shows.
        link_bytes_per_s: host to device and back, each way, as measured over its PCIe.
        source: where the figures are from.
    """

    bf16_flops: float
    memory_bytes_per_s: float
    memory_mib: int
    link_bytes_per_s: float
    source: str


GPUS: Final[Mapping[GpuName, Gpu]] = MappingProxyType(
    {
        "a10g": Gpu(
            70e12,
            600e9,
            23_028,
            _PCIE_4_X16,
            "NVIDIA A10G data sheet: 70 TFLOPS BF16 dense, 600 GB/s, 24 GB GDDR6, PCIe 4.0 x16",
        ),
        "l4": Gpu(
            121e12,
            300e9,
            23_034,
            _PCIE_4_X16,
            "NVIDIA L4 data sheet: 242 TFLOPS BF16 with sparsity, 300 GB/s, 24 GB, PCIe 4.0 x16",
        ),
        "a100": Gpu(
            312e12,
            2039e9,
            81_920,
            _PCIE_4_X16,
            "NVIDIA A100 80GB SXM data sheet: 312 TFLOPS BF16 dense, 2,039 GB/s, PCIe 4.0 x16",
        ),
        "h100": Gpu(
            989e12,
            3350e9,
            81_559,
            _PCIE_5_X16,
            "NVIDIA H100 SXM data sheet: 1,979 TFLOPS BF16 with sparsity, 3.35 TB/s, PCIe 5.0 x16",
        ),
        "h200": Gpu(
            989e12,
            4800e9,
            143_771,
            _PCIE_5_X16,
            "NVIDIA H200 SXM data sheet: 1,979 TFLOPS BF16 with sparsity, 4.8 TB/s, PCIe 5.0 x16",
        ),
    }
)


@dataclass(frozen=True, slots=True)
class ModelShape:
    """A Llama-like model, by its ``config.json``."""

    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    tied: bool
    """Whether the output layer shares the embedding's weights."""
    source: str

    @property
    def layer_parameters(self) -> int:
        """Matrices of all layers: what each token is multiplied with, but for the output layer."""
        attention = self.hidden * self.head_dim * 2 * (self.heads + self.kv_heads)
        return self.layers * (attention + 3 * self.hidden * self.intermediate)

    @property
    def parameters(self) -> int:
        """All matrices. Norms and biases, under a thousandth, are left out."""
        embeddings = 1 if self.tied else 2
        return self.layer_parameters + embeddings * self.vocabulary * self.hidden

    @property
    def kv_bytes_per_token(self) -> int:
        return 2 * self.layers * self.kv_heads * self.head_dim * BYTES_PER_VALUE

    @property
    def weight_bytes(self) -> int:
        return self.parameters * BYTES_PER_VALUE

    @property
    def flops_per_token(self) -> int:
        """Multiply and add for each weight of the layers. The output layer runs for the last token
        of a prompt only and is left out."""
        return 2 * self.layer_parameters

    @property
    def flops_per_token_pair(self) -> int:
        """Attention: one query's product with one key, and one value's share of the sum."""
        return 4 * self.layers * self.heads * self.head_dim


MODELS: Final[Mapping[ModelName, ModelShape]] = MappingProxyType(
    {
        "llama-3.1-8b": ModelShape(
            *(32, 4096, 14_336, 32, 8, 128, 128_256, False),
            "meta-llama/Llama-3.1-8B config.json",
        ),
        "qwen2.5-32b": ModelShape(
            *(64, 5120, 27_648, 40, 8, 128, 152_064, False),
            "Qwen/Qwen2.5-32B config.json",
        ),
        "smollm2-135m": ModelShape(
            *(30, 576, 1536, 9, 3, 64, 49_152, True),
            "HuggingFaceTB/SmolLM2-135M-Instruct config.json",
        ),
    }
)


def cost_model(gpu: str, model: str, tp: int = 1) -> CostModel:
    """The preset for a model on ``tp`` GPUs of one kind.

    Prefill is bound by arithmetic, decode by memory: every step reads the weights once, and each
    running request adds its arithmetic and its KV. With tensor parallelism all of these are
    divided by ``tp`` and each GPU has a link of its own; the exchange between the GPUs is left out.

    Raises:
        InvalidInputError: there is no such preset; the names are said.
    """
    card, shape = _gpu(gpu), _model(model)
    flops_per_s = card.bf16_flops * PREFILL_FLOPS_FRACTION * tp
    memory_bytes_per_s = card.memory_bytes_per_s * MEMORY_FRACTION * tp
    kv_bytes = shape.kv_bytes_per_token
    link = Link(card.link_bytes_per_s * tp / kv_bytes, COPY_LATENCY_S)
    return CostModel(
        name=f"{tp}x {gpu} {model}" if tp > 1 else f"{gpu} {model}",
        kv_bytes_per_token=kv_bytes,
        step_overhead_s=STEP_OVERHEAD_S,
        prefill_s_per_token=shape.flops_per_token / flops_per_s,
        prefill_s_per_token_pair=shape.flops_per_token_pair / flops_per_s,
        decode_step_s=shape.weight_bytes / memory_bytes_per_s,
        decode_s_per_sequence=2 * shape.parameters / flops_per_s,
        decode_s_per_context_token=kv_bytes / memory_bytes_per_s,
        load=link,
        write=link,
        fetch=Link(STORAGE_BYTES_PER_S / kv_bytes, STORAGE_LATENCY_S),
    )


def sglang_mem_fraction(gpu: str, tp: int = 1) -> float:
    """Share of a GPU's memory for weights and KV that SGLang 0.5.23 takes by default.

    ``arg_groups/memory_hook.py``: it leaves 512 MiB, 1.5 MiB for each token of a prefill chunk
    (4,096 tokens below 60 GiB of memory, else 8,192), 2 MiB for each sequence of the largest
    captured decode batch (48 below 35 GiB, else 256) and 128 MiB for each rank. Its smaller items
    for captured prefills are left out.
    """
    memory_mib = _gpu(gpu).memory_mib
    large = memory_mib >= 60 * 1024
    chunk_tokens, batch = (8192, 256) if large else (4096, 48)
    reserved_mib = 512 + 1.5 * chunk_tokens + 2 * batch + 128 * tp
    if large:
        reserved_mib = max(reserved_mib, 10 * 1024)
    return round(1 - reserved_mib / memory_mib, 3)


def device_tokens(gpu: str, model: str, tp: int = 1, mem_fraction: float | None = None) -> int:
    """How many tokens' KV fit next to the weights.

    Args:
        mem_fraction: SGLang's ``--mem-fraction-static``; its default if None. For example,
            Qwen2.5-32B (61 GiB in bfloat16) leaves 5.5 GiB of an H100, or 22,000 tokens.

    Raises:
        InvalidInputError: no such preset, or the weights alone do not fit; the smallest ``tp`` that
            would do is not searched.
    """
    card, shape = _gpu(gpu), _model(model)
    fraction = sglang_mem_fraction(gpu, tp) if mem_fraction is None else mem_fraction
    kv_bytes = fraction * card.memory_mib * _MIB * tp - shape.weight_bytes
    if kv_bytes < shape.kv_bytes_per_token:
        raise InvalidInputError(
            ["model"],
            f"the weights of {model!r} ({shape.weight_bytes / 1e9:.0f} GB) do not fit on "
            f"{tp} x {gpu!r}; use more GPUs (tp) or larger ones",
        )
    return int(kv_bytes // shape.kv_bytes_per_token)


def _gpu(name: str) -> Gpu:
    for known, card in GPUS.items():
        if known == name:
            return card
    raise InvalidInputError(["gpu"], f"{name!r} is no preset; use one of {', '.join(GPUS)}")


def _model(name: str) -> ModelShape:
    for known, shape in MODELS.items():
        if known == name:
            return shape
    raise InvalidInputError(["model"], f"{name!r} is no preset; use one of {', '.join(MODELS)}")
