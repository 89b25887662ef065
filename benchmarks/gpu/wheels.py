"""Wheels: what they are, whether they are whole, and how to take out what is not needed."""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from email.parser import HeaderParser
from pathlib import Path

__all__ = [
    "TrimmedWheel",
    "WheelError",
    "check_wheel",
    "file_sha256",
    "trim_wheel",
    "wheel_metadata",
]

_CHUNK_BYTES = 1 << 20


class WheelError(Exception):
    """A wheel is not what its own records say."""


@dataclass(frozen=True, slots=True)
class TrimmedWheel:
    """What was taken out of a wheel. ``dropped_bytes``: of the compressed members."""

    dropped: tuple[str, ...]
    dropped_bytes: int


def file_sha256(path: Path) -> str:
    """SHA-256 of a file, in hex."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_CHUNK_BYTES):
            digest.update(block)
    return digest.hexdigest()


def wheel_metadata(path: Path) -> tuple[str, str, list[str]]:
    """Name, version and declared requirements of a wheel."""
    with zipfile.ZipFile(path) as wheel:
        text = wheel.read(_member(wheel, "METADATA")).decode()
    fields = HeaderParser().parsestr(text)
    return fields["Name"], fields["Version"], fields.get_all("Requires-Dist") or []


def trim_wheel(source: Path, target: Path, drop: Callable[[str], bool]) -> TrimmedWheel:
    """Write ``source`` without the members that ``drop`` names, and with a RECORD that fits.

    The wheel's own metadata is never dropped.
    """
    dropped: list[str] = []
    dropped_bytes = 0
    with (
        zipfile.ZipFile(source) as old,
        zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as new,
    ):
        record = _member(old, "RECORD")
        folder = record.rpartition("/")[0] + "/"
        for member in old.infolist():
            name = member.filename
            if not name.startswith(folder) and drop(name):
                dropped.append(name)
                dropped_bytes += member.compress_size
            elif name != record:
                new.writestr(member, old.read(name), zipfile.ZIP_DEFLATED)
        rows = csv.reader(io.StringIO(old.read(record).decode()))
        gone = set(dropped)
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows(row for row in rows if row[0] not in gone)
        new.writestr(record, text.getvalue())
    return TrimmedWheel(tuple(dropped), dropped_bytes)


def check_wheel(path: Path) -> None:
    """Check every file of a wheel against its RECORD.

    Raises:
        WheelError: a file is missing, is not listed, or differs from what is recorded.
    """
    with zipfile.ZipFile(path) as wheel:
        record = _member(wheel, "RECORD")
        listed = {
            row[0]: row[1] for row in csv.reader(io.StringIO(wheel.read(record).decode())) if row
        }
        there = {name for name in wheel.namelist() if not name.endswith("/")}
        if listed.keys() != there:
            odd = sorted(listed.keys() ^ there)[0]
            raise WheelError(f"{path.name}: {odd} is in RECORD or in the wheel, and not in both")
        for name, recorded in listed.items():
            if not recorded:
                continue
            algorithm, _, expected = recorded.partition("=")
            digest = hashlib.new(algorithm, wheel.read(name)).digest()
            if base64.urlsafe_b64encode(digest).rstrip(b"=").decode() != expected:
                raise WheelError(f"{path.name}: {name} is not what RECORD says")


def _member(wheel: zipfile.ZipFile, name: str) -> str:
    for member in wheel.namelist():
        folder, _, file = member.partition("/")
        if folder.endswith(".dist-info") and file == name:
            return member
    raise WheelError(f"{wheel.filename}: has no {name}")
