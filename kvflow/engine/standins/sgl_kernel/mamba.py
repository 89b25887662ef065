from __future__ import annotations

from collections.abc import Callable
from typing import NoReturn

from ._absent import absent


def __getattr__(name: str) -> Callable[..., NoReturn]:
    return absent(__name__, name)
