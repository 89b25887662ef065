"""Reading and writing the key file."""

from __future__ import annotations

import contextlib
import fcntl
import os
import stat
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final, TypeVar

from pydantic import ValidationError

from kvflow.errors import EnvironmentProblemError
from kvflow.server.keys.base import KeyFile
from kvflow.server.keys.tokens import make_salt_secret

__all__ = ["MAX_FILE_BYTES", "change_key_file", "read_key_file"]

MAX_FILE_BYTES: Final = 8 * 1024 * 1024
_OTHERS_BITS: Final = stat.S_IWGRP | stat.S_IRWXO

Result = TypeVar("Result")


def read_key_file(path: Path) -> KeyFile:
    """The content of the file.

    Raises:
        EnvironmentProblemError: it cannot be read, others may read it, or it is broken. The message
            quotes nothing of its content but names of fields.
    """
    try:
        with path.open("rb") as file:
            status = os.fstat(file.fileno())
            if stat.S_IMODE(status.st_mode) & _OTHERS_BITS:
                raise EnvironmentProblemError(
                    f"the key file {path} can be read or written by others "
                    f"(mode {stat.S_IMODE(status.st_mode):04o})",
                    f"chmod 600 {path}",
                )
            text = file.read(MAX_FILE_BYTES + 1)
    except FileNotFoundError as missing:
        raise EnvironmentProblemError(
            f"there is no key file {path}", "make the first key with `kvflow keys create`"
        ) from missing
    except OSError as error:
        raise EnvironmentProblemError(
            f"the key file {path} cannot be read: {error.strerror or error}",
            "make it readable for the user that runs the service",
        ) from error
    if len(text) > MAX_FILE_BYTES:
        raise EnvironmentProblemError(
            f"the key file {path} is over {MAX_FILE_BYTES} bytes", "remove old keys from it"
        )
    try:
        return KeyFile.model_validate_json(text)
    except ValidationError as broken:
        first = broken.errors(include_url=False, include_input=False, include_context=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        words = first["msg"].removeprefix("Value error, ")
        raise EnvironmentProblemError(
            f"the key file {path} is broken: {where + ': ' if where else ''}{words}",
            "mend it, or take back the file as it was before the last change",
        ) from None  # pydantic's error quotes the content


def change_key_file(path: Path, change: Callable[[KeyFile], tuple[KeyFile, Result]]) -> Result:
    """Replace the file's content by what ``change`` makes of it; a missing file is an empty one.

    Readers see the old content or the new one, never a part. Changes by several processes happen
    one after the other. The file is for its owner alone (0600).

    Raises:
        EnvironmentProblemError: the file cannot be read or written.
    """
    path = path.resolve()  # a link stays, what it leads to is replaced
    try:
        with _locked(path.parent) as folder:
            content = (
                read_key_file(path) if path.exists() else KeyFile(salt_secret=make_salt_secret())
            )
            changed, result = change(content)
            _replace(path, changed.model_dump_json(indent=2, exclude_none=True) + "\n")
            os.fsync(folder)
    except OSError as error:
        raise EnvironmentProblemError(
            f"the key file {path} cannot be written: {error.strerror or error}",
            "choose another one with --keys or KVFLOW_KEYS_FILE, in a folder that exists",
        ) from error
    return result


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[int]:
    # The folder, as the file itself is replaced and a lock on the old one would say nothing.
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield descriptor
    finally:
        os.close(descriptor)


def _replace(path: Path, text: str) -> None:
    # mkstemp makes the file 0600, so that its content was never readable for others.
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            with contextlib.suppress(FileNotFoundError, PermissionError):
                # An administrator's change must not take the file from the service's user.
                before = path.stat()
                os.fchown(file.fileno(), before.st_uid, before.st_gid)
                os.fchmod(file.fileno(), stat.S_IMODE(before.st_mode))
            os.fsync(file.fileno())
        os.replace(name, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(name)
        raise
