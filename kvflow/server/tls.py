"""Serving HTTPS: the certificate, checked before anything listens."""

from __future__ import annotations

import ssl
from pathlib import Path

from kvflow.errors import EnvironmentProblemError

__all__ = ["check_certificate"]


def check_certificate(cert: Path, key: Path | None) -> None:
    """See that a server can use these files.

    Raises:
        EnvironmentProblemError: one cannot be read, they do not belong together, or the key is
            encrypted (a service that starts by itself cannot ask for a password).
    """
    for file in (cert, key):
        if file is not None:
            _check_readable(file)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    where = str(cert) if key is None else f"{cert} and {key}"
    try:
        context.load_cert_chain(cert, key, password=_refuse)
    except _EncryptedKeyError as encrypted:
        raise EnvironmentProblemError(
            f"the private key in {key or cert} is encrypted",
            f"decrypt it, as with: openssl pkey -in {key or cert} -out key.pem",
        ) from encrypted
    except ssl.SSLError as error:
        raise EnvironmentProblemError(
            f"{where} cannot be used for HTTPS: {error.reason or error}",
            "give the PEM files of a certificate (with its chain) and of its own private key",
        ) from error


class _EncryptedKeyError(Exception):
    """The key needs a password."""


def _refuse() -> str:
    raise _EncryptedKeyError


def _check_readable(file: Path) -> None:
    try:
        with file.open("rb"):
            pass
    except OSError as error:
        raise EnvironmentProblemError(
            f"{file} cannot be read: {error.strerror or error}",
            "make it readable for the user that runs the service, or name another file",
        ) from error
