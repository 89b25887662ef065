"""Wheels go into pieces and come out of them, or say what is wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.gpu.pieces import FORMAT, MANIFEST, PieceError, cut, join, read_manifest
from benchmarks.gpu.wheels import file_sha256
from tests.gpu.wheels import make_wheel


@pytest.fixture
def packed(tmp_path: Path) -> Path:
    """Three wheels in pieces of 4 KB."""
    source, folder = tmp_path / "wheels", tmp_path / "packed"
    source.mkdir()
    folder.mkdir()
    noise = bytes(range(256)) * 4
    wheels = [
        make_wheel(source, name, {f"{name}.bin": bytes(b ^ n for b in noise) * (n + 1)})
        for n, name in enumerate(("one", "two", "three"))
    ]
    pieces = cut(wheels, folder, 4096)
    described = [{"file": path.name, "sha256": file_sha256(path)} for path in wheels]
    write_manifest(folder, {"format": FORMAT, "wheels": described, "pieces": pieces})
    return folder


def write_manifest(folder: Path, manifest: dict[str, Any]) -> None:
    (folder / MANIFEST).write_text(json.dumps(manifest))


def test_what_was_cut_is_joined(packed: Path, tmp_path: Path) -> None:
    manifest = read_manifest(packed)
    assert len(manifest["pieces"]) > 2
    assert all(piece["bytes"] <= 4096 for piece in manifest["pieces"])
    found = join(packed, tmp_path / "joined")
    original = tmp_path / "wheels"
    assert {path.name for path in found} == {path.name for path in original.iterdir()}
    assert all(path.read_bytes() == (original / path.name).read_bytes() for path in found)


def test_the_same_wheels_give_the_same_pieces(packed: Path, tmp_path: Path) -> None:
    again = tmp_path / "again"
    again.mkdir()
    wheels = sorted((tmp_path / "wheels").iterdir(), reverse=True)
    assert cut(wheels, again, 4096) == read_manifest(packed)["pieces"]


def test_all_in_one_piece(packed: Path, tmp_path: Path) -> None:
    again = tmp_path / "again"
    again.mkdir()
    pieces = cut(sorted((tmp_path / "wheels").iterdir()), again, 1 << 30)
    assert [piece["file"] for piece in pieces] == ["wheels.tar.01-of-01"]


def test_a_missing_piece_is_named(packed: Path, tmp_path: Path) -> None:
    missing = packed / read_manifest(packed)["pieces"][1]["file"]
    missing.unlink()
    with pytest.raises(PieceError, match=f"{missing.name} is missing"):
        join(packed, tmp_path / "joined")


def test_a_damaged_piece_is_named_before_anything_is_taken_out(
    packed: Path, tmp_path: Path
) -> None:
    damaged = packed / read_manifest(packed)["pieces"][-1]["file"]
    content = bytearray(damaged.read_bytes())
    content[0] ^= 1
    damaged.write_bytes(bytes(content))
    with pytest.raises(PieceError, match=f"{damaged.name} is damaged"):
        join(packed, tmp_path / "joined")
    assert not (tmp_path / "joined").exists()


def test_a_wheel_that_the_manifest_does_not_know_is_refused(packed: Path, tmp_path: Path) -> None:
    manifest = read_manifest(packed)
    dropped = manifest["wheels"].pop()
    write_manifest(packed, manifest)
    with pytest.raises(PieceError, match=f"{dropped['file']} is not among"):
        join(packed, tmp_path / "joined")


def test_a_wheel_that_is_another_than_the_manifest_s_is_refused(
    packed: Path, tmp_path: Path
) -> None:
    manifest = read_manifest(packed)
    manifest["wheels"][0]["sha256"] = "0" * 64
    write_manifest(packed, manifest)
    with pytest.raises(PieceError, match="is not what"):
        join(packed, tmp_path / "joined")


def test_a_wheel_that_is_in_no_piece_is_named(packed: Path, tmp_path: Path) -> None:
    manifest = read_manifest(packed)
    manifest["wheels"].append({"file": "four.whl", "sha256": ""})
    write_manifest(packed, manifest)
    with pytest.raises(PieceError, match=r"four\.whl is in"):
        join(packed, tmp_path / "joined")


@pytest.mark.parametrize("text", [None, "{", '{"format": 0}'])
def test_a_folder_without_a_right_manifest_is_refused(tmp_path: Path, text: str | None) -> None:
    if text is not None:
        (tmp_path / MANIFEST).write_text(text)
    with pytest.raises(PieceError, match=MANIFEST):
        read_manifest(tmp_path)
