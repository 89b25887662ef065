"""What the hardware allows: bytes over bandwidth, operations over rate. Pure arithmetic.

A floor is a time that no engine can stay below on the rates given, as each of its parts is the
whole of one resource's work and nothing else. What is left out (scheduling, launching, sampling,
anything that does not overlap) makes it lower than what can be reached.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

from kvflow.simulator.presets import ModelShape

__all__ = ["CallFloor", "CallSizes", "Rates", "call_floor", "floors"]


@dataclass(frozen=True, slots=True)
class Rates:
    """Measured on the machine.

    Attributes:
        load_bytes_per_s: from pinned host memory to the device.
        flops_per_s: of matrix products as large as a prefill's.
        memory_bytes_per_s: reading device memory.
        storage_bytes_per_s: reading the storage tier's disk; None if not measured.
    """

    load_bytes_per_s: float
    flops_per_s: float
    memory_bytes_per_s: float
    storage_bytes_per_s: float | None = None


@dataclass(frozen=True, slots=True)
class CallSizes:
    """Lengths of a call, in tokens."""

    fixed: int
    dynamic: int
    output: int


@dataclass(frozen=True, slots=True)
class CallFloor:
    """Least times of one call, in seconds.

    Attributes:
        load_s: copying the fixed prefix from the host to the device.
        fetch_s: reading it from storage; None if that was not measured.
        hit_ttft_s: computing the rest, with the prefix on the device.
        load_ttft_s: the same while the prefix is being loaded: the longer of the two.
        cold_ttft_s: computing all of the prompt.
        decode_s: all tokens after the first.
    """

    load_s: float
    fetch_s: float | None
    hit_ttft_s: float
    load_ttft_s: float
    cold_ttft_s: float
    decode_s: float

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def call_floor(shape: ModelShape, sizes: CallSizes, rates: Rates) -> CallFloor:
    """The floor of a call that runs alone."""
    fixed_bytes = sizes.fixed * shape.kv_bytes_per_token
    load_s = fixed_bytes / rates.load_bytes_per_s
    hit_s = _prefill_s(shape, sizes.dynamic, sizes.fixed, rates)
    prompt = sizes.fixed + sizes.dynamic
    steps = max(0, sizes.output - 1)
    # The n-th step reads the KV of the prompt and of what was generated before.
    read_tokens = steps * prompt + steps * (steps + 1) // 2
    decode_bytes = steps * _read_weight_bytes(shape) + read_tokens * shape.kv_bytes_per_token
    return CallFloor(
        load_s=load_s,
        fetch_s=None
        if rates.storage_bytes_per_s is None
        else fixed_bytes / rates.storage_bytes_per_s,
        hit_ttft_s=hit_s,
        load_ttft_s=max(hit_s, load_s),
        cold_ttft_s=_prefill_s(shape, prompt, 0, rates),
        decode_s=decode_bytes / rates.memory_bytes_per_s,
    )


def floors(shape: ModelShape, calls: Iterable[CallSizes], rates: Rates) -> list[dict[str, Any]]:
    """The floor of each different call, with its sizes, in the order in which they first occur."""
    return [
        {"sizes": asdict(sizes), **call_floor(shape, sizes, rates).to_json()}
        for sizes in dict.fromkeys(calls)
    ]


def _prefill_s(shape: ModelShape, new: int, before: int, rates: Rates) -> float:
    """Computing, or reading the weights once if that takes longer."""
    pairs = new * before + new * (new + 1) // 2
    flops = new * shape.flops_per_token + pairs * shape.flops_per_token_pair
    return max(flops / rates.flops_per_s, _read_weight_bytes(shape) / rates.memory_bytes_per_s)


def _read_weight_bytes(shape: ModelShape) -> int:
    """All but the embedding, of which a row per token is read; tied, it is the output layer."""
    embedding = 0 if shape.tied else shape.vocabulary * shape.hidden * 2
    return shape.weight_bytes - embedding
