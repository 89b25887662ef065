"""A list of command-line flags in which the user's take the place of ours."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from types import MappingProxyType
from typing import Final

__all__ = ["flag_value", "merge_flags"]

Flag = tuple[str, str | None]

# Other spellings SGLang accepts for flags that KVFlow sets or reads.
_CANONICAL: Final = MappingProxyType(
    {
        "--model": "--model-path",
        "--tp": "--tp-size",
        "--tensor-parallel-size": "--tp-size",
    }
)


def _name(argument: str) -> str | None:
    if not argument.startswith("--"):
        return None
    name = argument.partition("=")[0].replace("_", "-")
    return _CANONICAL.get(name, name)


def merge_flags(ours: Iterable[Flag], users: Sequence[str]) -> list[str]:
    """Our flags that the user did not give, then the user's as given."""
    given = {_name(argument) for argument in users}
    merged: list[str] = []
    for name, value in ours:
        if _name(name) not in given:
            merged += [name] if value is None else [name, value]
    return [*merged, *users]


def flag_value(arguments: Sequence[str], flag: str) -> str | None:
    """The value of ``flag`` in a command line; the last one wins, as it does in SGLang."""
    value: str | None = None
    for position, argument in enumerate(arguments):
        if _name(argument) != _name(flag):
            continue
        _, equals, attached = argument.partition("=")
        if equals:
            value = attached
        elif position + 1 < len(arguments):
            value = arguments[position + 1]
    return value
