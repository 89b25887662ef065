"""Commands that run for minutes end cleanly."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Final, NoReturn

__all__ = ["signals_clean_up"]

_ENDING_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@contextmanager
def signals_clean_up() -> Iterator[None]:
    """Let the first signal to end be an exception that stops all processes, undisturbed by more."""

    def interrupt(number: int, frame: FrameType | None) -> NoReturn:
        for one in _ENDING_SIGNALS:
            signal.signal(one, signal.SIG_IGN)
        raise KeyboardInterrupt

    before = {one: signal.getsignal(one) for one in _ENDING_SIGNALS}
    for one in _ENDING_SIGNALS:
        if before[one] is not signal.SIG_IGN:  # nohup
            signal.signal(one, interrupt)
    try:
        yield
    finally:
        for one, handler in before.items():
            signal.signal(one, handler)
