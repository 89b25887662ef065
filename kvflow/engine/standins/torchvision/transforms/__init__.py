from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from typing import NoReturn

from .._absent import absent  # noqa: TID252 - has no absolute name of its own


class InterpolationMode(Enum):
    """Real, because importers use its members as values and dictionary keys."""

    NEAREST = "nearest"
    NEAREST_EXACT = "nearest-exact"
    BILINEAR = "bilinear"
    BICUBIC = "bicubic"
    BOX = "box"
    HAMMING = "hamming"
    LANCZOS = "lanczos"


def __getattr__(name: str) -> Callable[..., NoReturn]:
    return absent(__name__, name)
