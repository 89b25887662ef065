"""``kvflow trace``: ask a running engine for its trace."""

from __future__ import annotations

import os
import shutil
import time
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Final

import typer

from kvflow.errors import EnvironmentProblemError, InvalidInputError
from kvflow.sglang_plugin.chrome_trace import TraceFiles
from kvflow.sglang_plugin.settings import PluginSettings

__all__ = ["trace"]

_LOOK_AGAIN_S: Final = 0.05


def trace(
    folder: Annotated[
        Path | None,
        typer.Option(
            "--dir",
            metavar="DIR",
            help="The folder the engine was started with. [env: KVFLOW_TRACE_DIR]",
        ),
    ] = None,
    engine_id: Annotated[
        str | None,
        typer.Option(help="Which engine. [env: KVFLOW_ENGINE_ID; this machine's host name]"),
    ] = None,
    output: Annotated[
        Path | None, typer.Option(help="Copy the trace there. [it stays in DIR]")
    ] = None,
    timeout_s: Annotated[float, typer.Option(help="Wait this long for the engine.")] = 10.0,
) -> None:
    """Ask a running engine for the timeline of its latest requests.

    The engine has to run with KVFLOW_TRACE_DIR set, or nothing is recorded.
    """
    folder = _folder(folder)
    if output is not None and not output.absolute().parent.is_dir():
        raise InvalidInputError(["--output"], f"there is no folder {output.absolute().parent}")
    engine_id = engine_id or PluginSettings.from_env(os.environ).engine_id
    written = _ask(TraceFiles.of(folder, engine_id), engine_id, timeout_s)
    if output is not None:
        try:
            shutil.copyfile(written, output)
        except OSError as error:
            raise InvalidInputError(
                ["--output"], f"cannot be written: {error.strerror}; the trace is in {written}"
            ) from error
        written = output
    typer.echo(written)
    typer.echo("Open it in https://ui.perfetto.dev (it stays in your browser).", err=True)


def _folder(given: Path | None) -> Path:
    in_environment = os.environ.get("KVFLOW_TRACE_DIR")
    folder = given or (Path(in_environment) if in_environment else None)
    if folder is None:
        raise InvalidInputError(
            ["--dir"], "is missing; give the KVFLOW_TRACE_DIR that the engine was started with"
        )
    if not folder.is_dir():
        raise InvalidInputError(
            ["--dir"],
            f"{str(folder)!r} is not a folder here; give the KVFLOW_TRACE_DIR that the engine "
            "was started with (the engine makes it when it starts)",
        )
    return folder


def _ask(files: TraceFiles, engine_id: str, timeout_s: float) -> Path:
    before = _version(files.trace)
    deadline_s = time.monotonic() + timeout_s
    try:
        files.request.touch()
        while files.request.exists():
            if time.monotonic() >= deadline_s:
                raise EnvironmentProblemError(
                    f"no engine {engine_id!r} answered within {timeout_s:g} s",
                    _what_to_check(files.request.parent),
                )
            time.sleep(_LOOK_AGAIN_S)
    except OSError as error:
        raise EnvironmentProblemError(
            f"{files.request} cannot be made: {error.strerror}",
            "run this as a user who may write there",
        ) from error
    finally:
        with suppress(OSError):
            files.request.unlink()
    if _version(files.trace) == before:
        raise EnvironmentProblemError(
            f"the engine {engine_id!r} could not write {files.trace}",
            "read why in the engine's log",
        )
    return files.trace


def _version(path: Path) -> tuple[int, int] | None:
    try:
        status = path.stat()
    except FileNotFoundError:
        return None
    return status.st_ino, status.st_mtime_ns


def _what_to_check(folder: Path) -> str:
    return (
        "check that the engine runs, with --radix-cache-backend kvflow and "
        f"KVFLOW_TRACE_DIR={folder} (in a container: the folder as it is called there), that it "
        "has this id (KVFLOW_ENGINE_ID; give --engine-id), and that it may write to the folder; "
        "one that is in a long step answers late: try a longer --timeout-s"
    )
