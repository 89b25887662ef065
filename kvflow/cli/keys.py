"""``kvflow keys``: make, list, rotate and revoke the API keys of a service."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from datetime import datetime, timedelta
from pathlib import Path
from typing import Annotated, Final

import typer
from pydantic import TypeAdapter, ValidationError

from kvflow.errors import InvalidInputError
from kvflow.protocol import Identifier
from kvflow.server.keys import (
    ClientLimits,
    ClientRecord,
    KeyFile,
    KeyRecord,
    KeyScope,
    NewKey,
    change_key_file,
    configure,
    create_key,
    read_key_file,
    revoke,
    rotate,
    utc_now,
)

__all__ = ["keys"]

keys = typer.Typer(
    help="Make, list, rotate and revoke the API keys of a service.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

_SPAN: Final = re.compile(r"^(\d{1,6})([smhd])$")
_UNITS: Final = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}
_SCOPES: Final[dict[str, KeyScope]] = {"client": "client", "admin": "admin", "engine": "engine"}

KeysOption = Annotated[
    Path | None,
    typer.Option("--keys", metavar="FILE", help="The key file. [env: KVFLOW_KEYS_FILE]"),
]
NameArgument = Annotated[
    str, typer.Argument(metavar="NAME", help="Whose key it is; for a client its client_id.")
]
ExpiresOption = Annotated[
    str | None,
    typer.Option("--expires", metavar="SPAN", help="Valid for this long: 12h, 90d. [for ever]"),
]
IsolateOption = Annotated[
    bool | None,
    typer.Option(
        "--isolate-cache/--share-cache",
        help="Whether the client's prefixes in the engines' caches are its own. [share]",
    ),
]
RequestsOption = Annotated[
    float | None, typer.Option(help="Requests per second. [KVFLOW_CLIENT_REQUESTS_PER_S]")
]
EventsOption = Annotated[
    float | None, typer.Option(help="Step events per second. [KVFLOW_CLIENT_EVENTS_PER_S]")
]
WorkflowsOption = Annotated[
    int | None, typer.Option(help="Live workflows at once. [KVFLOW_CLIENT_MAX_WORKFLOWS]")
]


@keys.command("create")
def create(
    name: NameArgument,
    *,
    scope: Annotated[
        str, typer.Option(help="client, admin (everything) or engine (the engines' routes).")
    ] = "client",
    expires: ExpiresOption = None,
    isolate_cache: IsolateOption = None,
    requests_per_s: RequestsOption = None,
    events_per_s: EventsOption = None,
    max_workflows: WorkflowsOption = None,
    keys_file: KeysOption = None,
) -> None:
    """Make a key and print it: the only time that it is seen. The file is made if it is missing.

    A name can have two valid keys, so that the second can take over from the first.
    """
    _check_name(name)
    if scope not in _SCOPES:
        raise InvalidInputError(("scope",), f"must be one of {', '.join(_SCOPES)}; got {scope!r}")
    now = _now()
    limits = _limits(requests_per_s, events_per_s, max_workflows)

    def change(content: KeyFile) -> tuple[KeyFile, NewKey]:
        changed, new = create_key(
            content, name, _SCOPES[scope], now, expires_at=_from_now(expires, "expires", now)
        )
        if isolate_cache is not None or any(one is not None for one in limits.values()):
            if scope != "client":
                raise InvalidInputError(("scope",), "limits and the cache are set for clients only")
            changed = _configured(changed, name, isolate_cache, limits)
        return changed, new

    _show_new(change_key_file(_path(keys_file), change))


@keys.command("rotate")
def rotate_key(
    name: NameArgument,
    *,
    grace: Annotated[
        str, typer.Option(metavar="SPAN", help="How long the old key goes on: 0s, 24h, 7d.")
    ] = "24h",
    expires: ExpiresOption = None,
    keys_file: KeysOption = None,
) -> None:
    """Make a new key and print it; the old one ends after --grace."""
    now = _now()
    new = change_key_file(
        _path(keys_file),
        lambda content: rotate(
            content,
            name,
            now,
            grace=_span(grace, "grace"),
            expires_at=_from_now(expires, "expires", now),
        ),
    )
    _show_new(new)
    typer.echo(f"a key that {name} had before ends in {grace}, or earlier", err=True)


@keys.command("revoke")
def revoke_key(
    name_or_id: Annotated[
        str, typer.Argument(metavar="KEY_ID|NAME", help="One key, or all keys of a name.")
    ],
    *,
    keys_file: KeysOption = None,
) -> None:
    """End a key at once. A running service notices within a second, at its next request."""
    ended = change_key_file(_path(keys_file), lambda content: revoke(content, name_or_id, _now()))
    for key in ended:
        typer.echo(f"revoked {key.key_id} of {key.name}")
    if not ended:
        typer.echo("nothing to revoke: it had ended already")


@keys.command("set")
def set_client(
    name: NameArgument,
    *,
    isolate_cache: IsolateOption = None,
    requests_per_s: RequestsOption = None,
    events_per_s: EventsOption = None,
    max_workflows: WorkflowsOption = None,
    keys_file: KeysOption = None,
) -> None:
    """Change a client's limits and its place in the engines' caches.

    It holds for all of the client's keys.  What is not given stays.
    """
    limits = _limits(requests_per_s, events_per_s, max_workflows)
    change_key_file(
        _path(keys_file),
        lambda content: (_configured(content, name, isolate_cache, limits), None),
    )


@keys.command("list")
def list_keys(
    *,
    as_json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
    keys_file: KeysOption = None,
) -> None:
    """List the keys, without what would let anyone use them."""
    content = read_key_file(_path(keys_file))
    now = _now()
    rows = [_row(content, key, now) for key in sorted(content.keys, key=lambda k: k.created_at)]
    if as_json:
        typer.echo(json.dumps(rows, indent=2))
        return
    if not rows:
        typer.echo("no keys")
        return
    names = list(rows[0])
    table = [[name.replace("_", " ") for name in names]]
    table += [["-" if row[name] is None else str(row[name]) for name in names] for row in rows]
    widths = [max(len(line[i]) for line in table) for i in range(len(names))]
    for line in table:
        cells = (cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        typer.echo("  ".join(cells).rstrip())


def _row(content: KeyFile, key: KeyRecord, now: datetime) -> dict[str, object]:
    client = content.clients.get(key.name, ClientRecord()) if key.scope == "client" else None
    return {
        "key_id": key.key_id,
        "name": key.name,
        "scope": key.scope,
        "state": key.state(now),
        "created_at": key.created_at.isoformat(),
        "expires_at": None if key.expires_at is None else key.expires_at.isoformat(),
        "cache": None if client is None else ("own" if client.isolate_cache else "shared"),
    }


def _configured(
    content: KeyFile,
    name: str,
    isolate_cache: bool | None,
    given: Mapping[str, float | None],
) -> KeyFile:
    before = content.clients.get(name, ClientRecord())
    known = before.limits.model_dump()
    try:
        limits = ClientLimits.model_validate(
            known | {field: value for field, value in given.items() if value is not None}
        )
    except ValidationError as wrong:
        first = wrong.errors(include_url=False)[0]
        raise InvalidInputError((str(first["loc"][0]),), first["msg"]) from wrong
    isolated = before.isolate_cache if isolate_cache is None else isolate_cache
    return configure(content, name, ClientRecord(isolate_cache=isolated, limits=limits))


def _limits(
    requests_per_s: float | None, events_per_s: float | None, max_workflows: int | None
) -> dict[str, float | None]:
    return {
        "requests_per_s": requests_per_s,
        "events_per_s": events_per_s,
        "max_workflows": max_workflows,
    }


def _show_new(new: NewKey) -> None:
    until = "" if new.record.expires_at is None else f", until {new.record.expires_at.isoformat()}"
    typer.echo(
        f"key {new.record.key_id} of {new.record.name} ({new.record.scope}{until}); "
        "it is shown this once:",
        err=True,
    )
    typer.echo(new.key)
    if new.record.scope == "client":
        typer.echo(
            f"programs with the SDK need KVFLOW_API_KEY=<the key> and "
            f"KVFLOW_CLIENT_ID={new.record.name}",
            err=True,
        )


def _path(given: Path | None) -> Path:
    if given is not None:
        return given
    if named := os.environ.get("KVFLOW_KEYS_FILE"):
        return Path(named)
    raise InvalidInputError(("keys",), "say which key file: --keys FILE or KVFLOW_KEYS_FILE")


def _check_name(name: str) -> None:
    try:
        TypeAdapter(Identifier).validate_python(name)
    except ValidationError as wrong:
        raise InvalidInputError(
            ("name",),
            "must start with a letter or digit and go on with letters, digits and . _ : @ -, at "
            "most 256 characters",
        ) from wrong


def _from_now(span: str | None, field: str, now: datetime) -> datetime | None:
    return None if span is None else now + _span(span, field)


def _now() -> datetime:
    return utc_now().replace(microsecond=0)


def _span(text: str, field: str) -> timedelta:
    match = _SPAN.match(text)
    if match is None:
        raise InvalidInputError(
            (field,), f"must be a number and s, m, h or d, such as 12h or 90d; got {text!r}"
        )
    return timedelta(**{_UNITS[match[2]]: int(match[1])})
