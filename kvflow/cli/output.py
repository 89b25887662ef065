"""What a command prints and writes of what it found."""

from __future__ import annotations

import os
from pathlib import Path

import typer
from rich.console import Console

from kvflow.errors import InvalidInputError

__all__ = ["check_writable", "say", "write"]


def say(console: Console, line: str) -> None:
    """Print a line as it is; a terminal wraps it."""
    console.print(line, markup=False, highlight=False, soft_wrap=True)


def write(text: str, file: str, what: str, console: Console) -> None:
    """Write the text to a file and say so; to stdout if the file is ``-``."""
    if file == "-":
        typer.echo(text)
        return
    Path(file).write_text(text + "\n", encoding="utf-8")
    say(console, f"{what}: {file}")


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
