"""Markdown for tables made from results."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

__all__ = ["Result", "machine", "outputs", "table"]

Result = Mapping[str, Any]
"""What a result file holds."""


def table(head: Iterable[str], rows: Iterable[Sequence[str]]) -> str:
    """A table; all columns but the first are figures."""
    head = list(head)
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def machine(result: Result) -> str:
    """What it was measured on, as a sentence of its own."""
    environment = result["environment"]
    sglang = environment["packages"].get("sglang")
    version = f", SGLang {sglang}" if sglang else ""
    return (
        f"\n{environment['cpu_model']}, {environment['cpu_cores']} cores, "
        f"{environment['python']}{version}.\n"
    )


def outputs(result: Result) -> str:
    """Whether all arms answered alike, as a sentence."""
    return f"Outputs of all arms: {'' if result['outputs_identical'] else 'NOT '}identical."
