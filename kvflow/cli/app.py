"""The commands of ``kvflow``, each loaded only when it is the one asked for."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Annotated, Any, Final

import typer

from kvflow import __version__
from kvflow.errors import EnvironmentProblemError

__all__ = ["COMMANDS", "build_app", "run"]


@dataclass(frozen=True, slots=True)
class Command:
    """A command whose function, of the same name (with _ for -), lives in a module of its own.

    Where a command has commands of its own, a ``typer.Typer`` stands in the function's place.
    """

    name: str
    summary: str
    extra: str

    @property
    def module(self) -> str:
        return f"kvflow.cli.{self.function}"

    @property
    def function(self) -> str:
        return self.name.replace("-", "_")


COMMANDS: Final = (
    Command("engine", "Start SGLang with KVFlow's cache, on CUDA or on a CPU.", "sglang"),
    Command("serve", "Run the KVFlow service.", "server"),
    Command("keys", "Make, list, rotate and revoke the API keys of a service.", "server"),
    Command("demo", "Compare KVFlow with stock SGLang on a ten-agent workflow.", "demo"),
    Command("bench", "Run a scenario with every kind of cache, on this machine.", "bench"),
    Command("simulate", "Run a scenario on a model of the engine, without one.", "simulate"),
    Command("trace", "Ask a running engine for a timeline of its latest requests.", "cli"),
    Command("convert-trace", "Make a trace to replay of a recording or another's trace.", "cli"),
    Command("doctor", "Check this machine and say what is missing.", "cli"),
    Command("version", "Print the versions of KVFlow and of what it works with.", "cli"),
)

_TO_BEGIN: Final = (
    "To begin: kvflow doctor, then kvflow demo.  To serve: kvflow serve and kvflow engine, "
    "each in a terminal of its own."
)
_USAGE_EXIT_STATUS: Final = 2


def run(arguments: Sequence[str]) -> int:
    """Run the command in ``arguments``; return its exit status.

    Raises:
        KVFlowError: what the command raised on purpose.
    """
    asked_for = next((word for word in arguments if not word.startswith("-")), None)
    try:
        build_app(asked_for)(args=list(arguments), prog_name="kvflow")
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else 0
        if status == _USAGE_EXIT_STATUS and asked_for == "engine":
            print(
                "SGLang's own flags go after `--`, as in: kvflow engine -- --log-level debug",
                file=sys.stderr,
            )
        return status
    return 0


def build_app(asked_for: str | None) -> typer.Typer:
    """Put the application together; only the command ``asked_for`` is imported."""
    app = typer.Typer(
        name="kvflow",
        help="Workflow-aware KV cache for multi-agent LLM serving on SGLang.",
        epilog=_TO_BEGIN,
        context_settings={"help_option_names": ["--help", "-h"]},
        no_args_is_help=True,
        add_completion=False,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
    )
    app.callback()(_global_options)
    for command in COMMANDS:
        body = _load(command) if command.name == asked_for else _stub
        if isinstance(body, typer.Typer):
            app.add_typer(body, name=command.name)
            continue
        app.command(command.name, help=None if body is not _stub else command.summary)(body)
    return app


def _say_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"kvflow {__version__}")
        raise typer.Exit


def _global_options(
    debug: Annotated[
        bool, typer.Option("--debug", help="Show the traceback of an error, too.")
    ] = False,
    version: Annotated[
        bool,
        typer.Option("--version", callback=_say_version, is_eager=True, help="Print the version."),
    ] = False,
) -> None:
    # --debug is read by main(), which handles the errors; --version has been answered.
    del debug, version


def _stub() -> None:
    """Stand for a command in the list of commands."""


def _load(command: Command) -> Callable[..., Any] | typer.Typer:
    try:
        module = import_module(command.module)
    except ModuleNotFoundError as missing:
        if missing.name == command.module:
            raise EnvironmentProblemError(
                f"this build of KVFlow has no `{command.name}` command", "install a newer version"
            ) from missing
        package = (missing.name or "").partition(".")[0]
        if package == "kvflow":
            raise
        raise EnvironmentProblemError(
            f"`kvflow {command.name}` needs the package {package}, which is not installed",
            f"pip install 'kvflow[{command.extra}]'",
        ) from missing
    body: Callable[..., Any] | typer.Typer = getattr(module, command.function)
    return body
