"""``kvflow engine``: start SGLang."""

from __future__ import annotations

import os
import socket
import sys
from typing import Annotated, get_args

import typer

from kvflow.cli.choices import one_of
from kvflow.engine import EngineOptions, exec_engine, prepare
from kvflow.engine.device import Device
from kvflow.engine.flags import flag_value
from kvflow.engine.model import SMOLLM2
from kvflow.engine.options import DEFAULT_HOST, DEFAULT_PORT

__all__ = ["engine"]


def engine(  # noqa: PLR0917 - each is an option by name
    sglang_flags: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[-- SGLANG_FLAGS]",
            help="Any flags of SGLang, after a `--`; they replace those set here.",
        ),
    ] = None,
    device: Annotated[
        str, typer.Option(help="auto, cpu or cuda. auto: cuda where there is a GPU for it.")
    ] = "auto",
    model: Annotated[
        str,
        typer.Option(
            help="smollm2 (a small chat model that needs no download), "
            "a checkpoint's folder, or a Hugging Face id."
        ),
    ] = "smollm2",
    host: Annotated[str, typer.Option(help="Address to listen on.")] = DEFAULT_HOST,
    port: Annotated[int, typer.Option(help="Port to listen on.")] = DEFAULT_PORT,
    kvflow: Annotated[
        bool,
        typer.Option(
            "--kvflow/--stock", help="KVFlow's prefix cache, or SGLang's own without the plugin."
        ),
    ] = True,
    max_total_tokens: Annotated[
        int | None,
        typer.Option(help="Size of the KV cache on the device, in tokens. [CPU: 16384]"),
    ] = None,
    page_size: Annotated[
        int | None, typer.Option(help="Tokens per page of the KV cache. [CPU: 16]")
    ] = None,
    hicache_ratio: Annotated[
        float | None,
        typer.Option(help="Add a host tier (HiCache) this many times the device's size. [none]"),
    ] = None,
    tp: Annotated[int, typer.Option(help="Tensor parallel ranks.")] = 1,
    print_command: Annotated[
        bool, typer.Option("--print-command", help="Print what would be run, and stop.")
    ] = False,
) -> None:
    """Start SGLang with KVFlow's cache, on CUDA or on a CPU.

    This process becomes the engine.  The plugin in it looks for the KVFlow service at
    KVFLOW_SERVICE_URL (default http://127.0.0.1:8100) and does without while there is none.
    """
    flags = tuple(sglang_flags or ())
    options = EngineOptions(
        model=model,
        device=one_of("--device", device, get_args(Device)),
        host=host,
        port=port,
        radix="kvflow" if kvflow else "stock",
        page_size=page_size,
        max_total_tokens=max_total_tokens,
        hicache_ratio=hicache_ratio,
        tp=tp,
        env=_own_name(port),
        extra_args=(*_served_name(model, flags), *flags),
    )
    command = prepare(options, progress=lambda line: typer.echo(line, err=True))
    if print_command:
        typer.echo(command.as_shell())
        return
    typer.echo(
        f"kvflow: starting SGLang on http://{command.host}:{command.port} "
        '(it is up when it says "ready to roll")',
        err=True,
    )
    sys.stderr.flush()
    exec_engine(command)


def _own_name(port: int) -> dict[str, str]:
    """A second engine on this machine must not take the place of the first at the service."""
    if port == DEFAULT_PORT or os.environ.get("KVFLOW_ENGINE_ID"):
        return {}
    return {"KVFLOW_ENGINE_ID": f"{socket.gethostname()}-{port}"}


def _served_name(model: str, flags: tuple[str, ...]) -> tuple[str, ...]:
    """What clients and metrics call the model; SGLang would take the folder it was converted to."""
    chosen = flag_value(flags, "--served-model-name") or flag_value(flags, "--model-path")
    return () if model != SMOLLM2 or chosen else ("--served-model-name", SMOLLM2)
