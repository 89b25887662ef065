"""``kvflow doctor``: check this machine."""

from __future__ import annotations

import dataclasses
import json
from typing import Annotated, Final

import typer

from kvflow.cli.findings import Finding, examine
from kvflow.cli.machine import look_around, offered_radix_backends

__all__ = ["doctor"]

_MARKS: Final = {"ok": "ok      ", "note": "note    ", "problem": "PROBLEM "}


def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="Print the findings as JSON.")] = False,
    quick: Annotated[
        bool, typer.Option("--quick", help="Do not load SGLang, which takes up to half a minute.")
    ] = False,
) -> None:
    """Check this machine and say what is missing.

    The exit status is 1 if something keeps KVFlow from working here, else 0.
    """
    machine = look_around()
    if not quick and machine.packages["sglang"] and machine.packages["torch"]:
        typer.echo("Loading SGLang once (up to half a minute) ...", err=True)
        backends, error = offered_radix_backends()
        machine = dataclasses.replace(machine, radix_backends=backends, radix_error=error)
    findings = examine(machine)
    healthy = all(finding.status != "problem" for finding in findings)
    if as_json:
        report = {"healthy": healthy, "findings": [dataclasses.asdict(each) for each in findings]}
        typer.echo(json.dumps(report, indent=2))
    else:
        for finding in findings:
            typer.echo(_line(finding))
        typer.echo("All is well." if healthy else "Something is missing; see above.")
    raise typer.Exit(0 if healthy else 1)


def _line(finding: Finding) -> str:
    text = f"{_MARKS[finding.status]}{finding.name}: {finding.detail}"
    return f"{text}\n        -> {finding.remedy}" if finding.remedy else text
