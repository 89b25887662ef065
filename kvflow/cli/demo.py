"""``kvflow demo``: KVFlow and stock SGLang on the same work, on this machine."""

from __future__ import annotations

import json
from functools import partial
from typing import Annotated, get_args

import typer
from rich.console import Console

from kvflow.cli.choices import one_of
from kvflow.cli.long_runs import signals_clean_up
from kvflow.cli.output import check_writable, say, write
from kvflow.demo import DemoOptions, render, run_demo, to_json
from kvflow.demo.arms import ARMS, DEFAULT_ARMS, choose_arms
from kvflow.demo.progress import LiveProgress, PlainProgress, Progress
from kvflow.engine.device import Device

__all__ = ["demo"]


def demo(
    json_file: Annotated[
        str | None,
        typer.Option("--json", metavar="FILE", help="Write all figures there; - for stdout."),
    ] = None,
    arms: Annotated[
        str, typer.Option(help=f"What to run, separated by commas: {', '.join(ARMS)}; or all.")
    ] = ",".join(DEFAULT_ARMS),
    rounds: Annotated[
        int, typer.Option(help="Feature requests the team works on, 2 to 6; a round each.")
    ] = 3,
    device: Annotated[
        str, typer.Option(help="auto, cpu or cuda. auto: cuda where there is a GPU for it.")
    ] = "auto",
    keep_logs: Annotated[
        bool, typer.Option("--keep-logs", help="Keep the engines' logs although all went well.")
    ] = False,
) -> None:
    """Compare KVFlow with stock SGLang on a ten-agent workflow, on this machine.

    Starts real SGLang servers one after the other, lets ten agents work through some feature
    requests on each, and shows what KVFlow changed.  Takes five to ten minutes on two cores.
    """
    names = list(ARMS) if arms == "all" else [name.strip() for name in arms.split(",")]
    options = DemoOptions(
        arms=choose_arms(names),
        rounds=rounds,
        device=one_of("--device", device, get_args(Device)),
        keep_logs=keep_logs,
    )
    check_writable("--json", json_file)
    # With the figures on stdout, what people read goes to stderr.
    console = Console(stderr=json_file == "-")
    try:
        with signals_clean_up():
            result = run_demo(options, _progress(console))
    except KeyboardInterrupt:
        typer.echo("kvflow demo: interrupted; its processes are stopped", err=True)
        raise
    render(result, console)
    if json_file is not None:
        write(json.dumps(to_json(result), indent=2), json_file, "Figures", console)


def _progress(console: Console) -> Progress:
    if console.is_terminal:
        return LiveProgress(console)
    return PlainProgress(partial(say, console))
