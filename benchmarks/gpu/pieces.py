"""A folder of wheels as a few files that can be carried one by one, and back again.

The wheels are put into one tar archive, which is cut where it has to be. ``manifest.json`` beside
the pieces says what each piece and each wheel has to be; nothing is installed that is not.
"""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final, cast

from benchmarks.gpu.wheels import file_sha256

__all__ = ["MANIFEST", "PieceError", "cut", "join", "read_manifest"]

MANIFEST: Final = "manifest.json"
FORMAT: Final = 1
_CHUNK_BYTES: Final = 1 << 20


class PieceError(Exception):
    """A piece or a wheel is missing or damaged; says which."""


def cut(wheels: Sequence[Path], folder: Path, piece_bytes: int) -> list[dict[str, Any]]:
    """Write the wheels into ``folder`` in pieces of at most ``piece_bytes``; describes those.

    The same wheels give the same pieces.
    """
    archive = folder / "wheels.tar"
    with tarfile.open(archive, "w", format=tarfile.PAX_FORMAT) as tar:
        for wheel in sorted(wheels, key=lambda path: path.name):
            entry = tarfile.TarInfo(wheel.name)
            entry.size = wheel.stat().st_size
            with wheel.open("rb") as file:
                tar.addfile(entry, file)
    count = -(-archive.stat().st_size // piece_bytes)
    described = []
    with archive.open("rb") as whole:
        for number in range(1, count + 1):
            piece = folder / f"wheels.tar.{number:02d}-of-{count:02d}"
            left = piece_bytes
            with piece.open("wb") as part:
                while left and (block := whole.read(min(_CHUNK_BYTES, left))):
                    part.write(block)
                    left -= len(block)
            size = piece.stat().st_size
            described.append({"file": piece.name, "bytes": size, "sha256": file_sha256(piece)})
    archive.unlink()
    return described


def read_manifest(folder: Path) -> dict[str, Any]:
    """What a packed folder holds.

    Raises:
        PieceError: there is no manifest, or it is of another format.
    """
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise PieceError(f"{folder}/{MANIFEST} cannot be read: {error}") from error
    if manifest.get("format") != FORMAT:
        raise PieceError(f"{folder}/{MANIFEST} is not of format {FORMAT}; pack again")
    return cast("dict[str, Any]", manifest)


def join(folder: Path, target: Path) -> list[Path]:
    """Check the pieces and take the wheels out of them.

    Raises:
        PieceError: a piece is missing or damaged, or a wheel is not what was packed.
    """
    manifest = read_manifest(folder)
    for piece in manifest["pieces"]:
        path = folder / piece["file"]
        if not path.is_file():
            raise PieceError(f"{path} is missing; carry it here as well")
        if path.stat().st_size != piece["bytes"] or file_sha256(path) != piece["sha256"]:
            raise PieceError(f"{path} is damaged; carry it here again")
    target.mkdir(parents=True, exist_ok=True)
    wanted = {wheel["file"]: wheel["sha256"] for wheel in manifest["wheels"]}
    found = []
    whole = _Joined([folder / piece["file"] for piece in manifest["pieces"]])
    with tarfile.open(fileobj=cast("Any", whole), mode="r|") as tar:
        for entry in tar:
            content = tar.extractfile(entry)
            if content is None or entry.name not in wanted:
                raise PieceError(f"{entry.name} is not among the wheels of {MANIFEST}")
            found.append(_written(content, target / entry.name, wanted.pop(entry.name)))
    if wanted:
        raise PieceError(f"{sorted(wanted)[0]} is in {MANIFEST} and in none of the pieces")
    return found


def _written(content: Any, path: Path, sha256: str) -> Path:
    digest = hashlib.sha256()
    with path.open("wb") as file:
        while block := content.read(_CHUNK_BYTES):
            digest.update(block)
            file.write(block)
    if digest.hexdigest() != sha256:
        path.unlink()
        raise PieceError(f"{path.name} is not what {MANIFEST} says")
    return path


class _Joined(io.RawIOBase):
    """Files read as one, from the first to the last."""

    def __init__(self, paths: Iterable[Path]) -> None:
        self._blocks = self._read(paths)
        self._left = b""

    @staticmethod
    def _read(paths: Iterable[Path]) -> Iterator[bytes]:
        for path in paths:
            with path.open("rb") as file:
                while block := file.read(_CHUNK_BYTES):
                    yield block

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        while size < 0 or len(self._left) < size:
            block = next(self._blocks, b"")
            if not block:
                break
            self._left += block
        end = len(self._left) if size < 0 else size
        given, self._left = self._left[:end], self._left[end:]
        return given
