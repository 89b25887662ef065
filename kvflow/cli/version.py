"""``kvflow version``."""

from __future__ import annotations

import platform
from importlib import metadata

import typer

import kvflow

__all__ = ["version"]


def version() -> None:
    """Print the versions of KVFlow and of what it works with."""
    typer.echo(f"kvflow {kvflow.__version__}")
    typer.echo(f"python {platform.python_version()}")
    for package in ("sglang", "torch", "transformers"):
        try:
            typer.echo(f"{package} {metadata.version(package)}")
        except metadata.PackageNotFoundError:
            typer.echo(f"{package} not installed")
