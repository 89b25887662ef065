"""``kvflow bench``: a scenario on real engines on this machine, with every kind of cache."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args

import typer
from rich.console import Console

from kvflow.bench import ARMS, BenchOptions, LineProgress, choose_arms, run_bench
from kvflow.bench.report import headline, render_report, require_report_packages
from kvflow.cli.choices import one_of
from kvflow.cli.long_runs import signals_clean_up
from kvflow.cli.output import check_writable, say, write
from kvflow.engine.device import Device
from kvflow.errors import InvalidInputError
from kvflow.workload import find_scenario, load_scenario, shipped_scenarios

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rich.table import Table

__all__ = ["bench"]


def bench(
    scenario: Annotated[
        str | None, typer.Argument(help="A scenario that ships (see --list), or a scenario file.")
    ] = None,
    *,
    arms: Annotated[
        str | None,
        typer.Option(
            help=f"What to run, separated by commas: {', '.join(ARMS)}. "
            "By default all that differ on the scenario's cache."
        ),
    ] = None,
    repeats: Annotated[int, typer.Option(help="How often each arm runs the workload.")] = 3,
    json_file: Annotated[
        str | None,
        typer.Option("--json", metavar="FILE", help="Write all figures there; - for stdout."),
    ] = None,
    html_file: Annotated[
        str | None, typer.Option("--html", metavar="FILE", help="Write a report with plots there.")
    ] = None,
    device: Annotated[
        str, typer.Option(help="auto, cpu or cuda. auto: cuda where there is a GPU for it.")
    ] = "auto",
    model: Annotated[
        str, typer.Option(help="smollm2, a folder with a checkpoint, or a Hugging Face id.")
    ] = "smollm2",
    engines_at_once: Annotated[
        int | None,
        typer.Option(
            help="Engines alive at the same time, which take turns. "
            "By default one on CUDA, and on the CPU as many as fit into memory."
        ),
    ] = None,
    engine_arg: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FLAG",
            help="An SGLang flag for all arms, e.g. --engine-arg=--mem-fraction-static=0.8. "
            "May be repeated.",
        ),
    ] = None,
    storage_dir: Annotated[
        str | None,
        typer.Option(metavar="FOLDER", help="Where storage tiers are kept while it runs."),
    ] = None,
    keep_logs: Annotated[
        bool, typer.Option("--keep-logs", help="Keep the engines' logs although all went well.")
    ] = False,
    show_list: Annotated[
        bool, typer.Option("--list", help="Show the scenarios that ship, and run nothing.")
    ] = False,
) -> None:
    """Measure what KVFlow and its alternatives make of a scenario, on this machine.

    Starts real SGLang servers, one for each kind of cache, lets them run the same workload in
    turns, and compares hit rates, times to first token and the whole time.
    """
    console = Console(stderr=json_file == "-")
    if show_list:
        _show_scenarios(console)
        return
    if scenario is None:
        raise InvalidInputError(
            ["SCENARIO"], "is missing; name a scenario file, or one of those that --list shows"
        )
    if storage_dir is not None and not os.access(storage_dir, os.W_OK | os.X_OK):
        raise InvalidInputError(
            ["--storage-dir"], f"{storage_dir!r} is not a folder that this user can write to"
        )
    file = find_scenario(scenario)
    loaded = load_scenario(file)
    names = None if arms is None else [name.strip() for name in arms.split(",")]
    options = BenchOptions(
        scenario=loaded,
        arms=choose_arms(names, loaded),
        base=file.parent,
        repeats=repeats,
        device=one_of("--device", device, get_args(Device)),
        model=model,
        engines_at_once=engines_at_once,
        engine_args=tuple(engine_arg or ()),
        storage_dir=None if storage_dir is None else Path(storage_dir),
        keep_logs=keep_logs,
    )
    check_writable("--json", json_file)
    check_writable("--html", html_file)
    if html_file is not None:
        require_report_packages()
    try:
        with signals_clean_up(), _progress(console) as progress:
            result = run_bench(options, progress).to_json()
    except KeyboardInterrupt:
        typer.echo("kvflow bench: interrupted; its processes are stopped", err=True)
        raise
    _show(result, console)
    if json_file is not None:
        write(json.dumps(result, indent=1), json_file, "Figures", console)
    if html_file is not None:
        write(render_report(result), html_file, "Report", console)


def _show_scenarios(console: Console) -> None:
    table = _table("scenario", "")
    for name, path in shipped_scenarios().items():
        table.add_row(name, load_scenario(path).description)
    console.print(table)


def _show(result: Mapping[str, Any], console: Console) -> None:
    references = [one["name"] for one in result["arms"] if not one["settings"]["kvflow"]]
    table = _table("", "hit\nrate", "best\npossible", "TTFT\np50", "TTFT\np99", "end to\nend")
    for arm in result["arms"]:
        figures = arm["summary"]
        best = figures["bound_hit_rate"]
        table.add_row(
            arm["name"],
            f"{figures['hit_rate']:.3f}",
            "" if best is None else f"{best:.3f}",
            f"{figures['ttft_p50_s']:.3f} s",
            f"{figures['ttft_p99_s']:.3f} s",
            f"{figures['wall_s']['median']:.1f} s",
        )
    console.print()
    console.print(table)
    if references:
        heads = ("vs " + name.replace("-", "\n", 1) for name in references)
        compared = _table("end to end,\ntimes as fast", *heads)
        by_arm: dict[str, dict[str, str]] = {}
        for one in result["ratios"]:
            by_arm.setdefault(one["arm"], {})[one["to"]] = f"{one['wall_s']['median']:.2f}"
        for arm, ratios in by_arm.items():
            compared.add_row(arm, *(ratios.get(name, "") for name in references))
        console.print()
        console.print(compared)
    for line in ("", headline(result), _outputs_line(result)):
        say(console, line)


def _outputs_line(result: Mapping[str, Any]) -> str:
    if result["outputs_identical"] is None:
        return "With one run there are no outputs to compare."
    if result["outputs_identical"]:
        return "All arms and repeats gave identical outputs."
    first = result["differences"]["first"][0]
    return (
        f"OUTPUTS ARE NOT IDENTICAL: {result['differences']['count']} calls differ from the first "
        f"run, first call {first['position']} of {first['workflow_id']} in {first['arm']}, repeat "
        f"{first['repeat']}."
    )


def _table(*columns: str) -> Table:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False, collapse_padding=True)
    for number, column in enumerate(columns):
        table.add_column(column, justify="right" if column and number else "left")
    return table


@contextmanager
def _progress(console: Console) -> Iterator[LineProgress]:
    tell = partial(say, console)
    if not console.is_terminal:
        yield LineProgress(tell)
        return
    with console.status("starting") as status:
        yield LineProgress(tell, status)
