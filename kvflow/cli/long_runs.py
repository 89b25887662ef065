"""What commands that run for minutes have in common: they end cleanly, and can write what they
found."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Final, NoReturn

from kvflow.errors import InvalidInputError

__all__ = ["check_writable", "signals_clean_up"]

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


def check_writable(option: str, file: str | None) -> None:
    """Refuse now, and not after minutes. None and ``-`` (stdout) are fine.

    Raises:
        InvalidInputError: what the option names cannot be written.
    """
    if file is None or file == "-":
        return
    target = Path(file)
    if target.is_dir():
        raise InvalidInputError([option], f"{file!r} is a folder; name a file in it")
    if not target.parent.is_dir():
        raise InvalidInputError([option], f"there is no folder {str(target.parent)!r}")
    if not os.access(target if target.exists() else target.parent, os.W_OK):
        raise InvalidInputError([option], f"{file!r} cannot be written by this user")
