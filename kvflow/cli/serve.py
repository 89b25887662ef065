"""``kvflow serve``: run the KVFlow service."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer
from pydantic import ValidationError

from kvflow.server import ServiceSettings, run

__all__ = ["serve"]


def serve(  # noqa: PLR0917 - each is an option by name
    host: Annotated[
        str | None, typer.Option(help="Address to listen on. [env: KVFLOW_HOST; 127.0.0.1]")
    ] = None,
    port: Annotated[
        int | None, typer.Option(help="Port; 0 for any free one. [env: KVFLOW_PORT; 8100]")
    ] = None,
    api_key: Annotated[
        str | None,
        typer.Option(
            help="Key that requests must bring. Other users of this machine can see it here; "
            "better set it in the environment. [env: KVFLOW_API_KEY; none]"
        ),
    ] = None,
    keys_file: Annotated[
        Path | None,
        typer.Option(
            "--keys",
            metavar="FILE",
            help="File of API keys that `kvflow keys` makes. [env: KVFLOW_KEYS_FILE; none]",
        ),
    ] = None,
    tls_cert: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Certificate chain (PEM): speak HTTPS. [env: KVFLOW_TLS_CERT; none]",
        ),
    ] = None,
    tls_key: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="The certificate's private key. [env: KVFLOW_TLS_KEY; none]"
        ),
    ] = None,
    allow_open: Annotated[
        bool | None,
        typer.Option(
            "--allow-open",
            help="Listen beyond this machine without a key. [env: KVFLOW_ALLOW_OPEN; no]",
        ),
    ] = None,
    public_metrics: Annotated[
        bool | None,
        typer.Option(
            "--public-metrics",
            help="Serve /metrics without the key. [env: KVFLOW_PUBLIC_METRICS; no]",
        ),
    ] = None,
    lease_s: Annotated[
        float | None,
        typer.Option(
            help="Engines that hear nothing for this long do without the service. "
            "[env: KVFLOW_LEASE_S; 10]"
        ),
    ] = None,
    engine_url: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            help="Engine that the OpenAI routes (/v1/chat/completions, ...) pass calls to. "
            "[env: KVFLOW_ENGINE_URL; none]",
        ),
    ] = None,
    database: Annotated[
        str | None,
        typer.Option(
            metavar="PLACE",
            help="Where workflows are kept: a file, 'none' for in memory, or valkey://HOST:PORT/DB "
            "for several services. [env: KVFLOW_DATABASE; ~/.local/state/kvflow/service-PORT.db]",
        ),
    ] = None,
    record: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Append workflows and events to a file that `kvflow convert-trace` makes a trace "
            "of. [env: KVFLOW_RECORD; none]",
        ),
    ] = None,
    log_format: Annotated[
        str | None,
        typer.Option(help="text or json: an object a line. [env: KVFLOW_LOG_FORMAT; text]"),
    ] = None,
    log_level: Annotated[
        str | None,
        typer.Option(help="debug, info, warning or error. [env: KVFLOW_LOG_LEVEL; info]"),
    ] = None,
    access_log: Annotated[
        bool | None,
        typer.Option("--access-log", help="Log every request. [env: KVFLOW_ACCESS_LOG; no]"),
    ] = None,
) -> None:
    """Run the KVFlow service: it tracks workflows and tells the engines which agents run next.

    Every setting has a KVFLOW_... variable in the environment; an option goes before it.
    """
    given = {
        "host": host,
        "port": port,
        "api_key": api_key,
        "keys_file": keys_file,
        "tls_cert": tls_cert,
        "tls_key": tls_key,
        "allow_open": allow_open,
        "public_metrics": public_metrics,
        "lease_s": lease_s,
        "engine_url": engine_url,
        "database": database,
        "record": record,
        "log_format": log_format,
        "log_level": log_level,
        "access_log": access_log,
    }
    try:
        settings = ServiceSettings.model_validate(
            {name: value for name, value in given.items() if value is not None}
        )
    except ValidationError as invalid:
        for error in invalid.errors(include_url=False, include_input=False):
            name = ".".join(str(part) for part in error["loc"])
            words = error["msg"].removeprefix("Value error, ")
            where = f"{_said_by(name, given)}: " if name else ""
            typer.echo(f"kvflow serve: {where}{words}", err=True)
        raise typer.Exit(2) from invalid
    run(settings)


def _said_by(name: str, given: Mapping[str, object]) -> str:
    """The option or the variable that a wrong value of this setting came from."""
    if given.get(name) is None:
        return f"KVFLOW_{name.upper()}"
    return "--keys" if name == "keys_file" else f"--{name.replace('_', '-')}"
