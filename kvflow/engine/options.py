"""What a user can choose about an engine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final, Literal

from kvflow.engine.device import Device
from kvflow.errors import InvalidInputError

__all__ = ["DEFAULT_HOST", "DEFAULT_PORT", "EngineOptions", "RadixCache"]

RadixCache = Literal["kvflow", "stock"]

DEFAULT_HOST: Final = "127.0.0.1"
DEFAULT_PORT: Final = 30000


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """How to start SGLang.  Whatever is None is left to the device's defaults.

    Attributes:
        model: ``"smollm2"``, a folder with a checkpoint, or a Hugging Face model id.
        radix: ``"kvflow"`` keeps the prefix cache in KVFlow's order; ``"stock"`` is SGLang as it
            comes, with KVFlow's plugin not even loaded.
        page_size: tokens per page of the KV cache.
        max_total_tokens: capacity of the device tier, in tokens.
        hicache_ratio: size of the host tier over that of the device tier; None: no host tier.
        tp: tensor parallel ranks.
        extra_args: SGLang flags as on its command line; they replace flags of ours.
        env: variables set for the engine; they win over the caller's and over ours. Search paths
            and plugins named there are added to ours.

    Raises:
        InvalidInputError: a number is out of range.
    """

    model: str = "smollm2"
    device: Device = "auto"
    host: str = DEFAULT_HOST
    port: int = DEFAULT_PORT
    radix: RadixCache = "kvflow"
    page_size: int | None = None
    max_total_tokens: int | None = None
    hicache_ratio: float | None = None
    tp: int = 1
    extra_args: tuple[str, ...] = ()
    env: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))

    def __post_init__(self) -> None:
        if not 1 <= self.port <= 65535:
            raise InvalidInputError(["port"], f"{self.port} is not a port; use 1 to 65535")
        for name in ("page_size", "max_total_tokens", "hicache_ratio", "tp"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise InvalidInputError([name], f"{value} is too small; it has to be above 0")
