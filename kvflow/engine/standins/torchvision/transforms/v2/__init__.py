from __future__ import annotations

from collections.abc import Callable
from typing import NoReturn

from ..._absent import absent  # noqa: TID252 - has no absolute name of its own


def __getattr__(name: str) -> Callable[..., NoReturn]:
    return absent(__name__, name)
