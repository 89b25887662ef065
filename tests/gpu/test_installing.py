"""The machine is looked at, and packed wheels are installed beside what it has."""

from __future__ import annotations

import json
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from benchmarks.gpu.installing import InstallError, install, probe
from benchmarks.gpu.pieces import FORMAT, MANIFEST, cut
from benchmarks.gpu.wheels import file_sha256
from tests.gpu.wheels import make_wheel

HERE = f"{sys.version_info[0]}.{sys.version_info[1]}"


def manifest(**changed: Any) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "sglang": "9",
        "python": HERE,
        "arch": "sm90",
        "assumed": [],
    } | changed


def packed(folder: Path, wheel: Path) -> Path:
    described = [{"file": wheel.name, "sha256": file_sha256(wheel)}]
    pieces = cut([wheel], folder, 1 << 20)
    text = json.dumps(manifest(wheels=described, pieces=pieces))
    (folder / MANIFEST).write_text(text)
    return folder


def problems(found: dict[str, Any]) -> dict[str, str]:
    return {finding.what: finding.problem for finding in probe(found, {"PATH": ""})}


def test_what_is_as_it_should_be_has_no_problem() -> None:
    pytest_version = metadata.version("pytest")
    found = problems(manifest(assumed=[{"name": "pytest", "version": pytest_version}]))
    assert (found["python"], found["libc"], found["pytest"]) == ("", "", "")


def test_what_is_missing_or_another_version_is_said() -> None:
    found = problems(
        manifest(
            python="2.7",
            assumed=[
                {"name": "no-such-package", "version": None},
                {"name": "pytest", "version": "0.1"},
            ],
        )
    )
    assert f"pack with --python {HERE}" in found["python"]
    assert "--ship no-such-package" in found["no-such-package"]
    assert "asks for 0.1" in found["pytest"]
    assert "PATH" in found["nvcc"]
    assert "PATH" in found["ninja"]


def test_wheels_are_installed_once_and_found_again(tmp_path: Path) -> None:
    wheel = make_wheel(tmp_path, members={"kvflow_gpu_sample.py": b"VALUE = 7\n"})
    pieces = tmp_path / "pieces"
    pieces.mkdir()
    said: list[str] = []
    site = install(packed(pieces, wheel), tmp_path / "cache", said.append)
    assert (site / "kvflow_gpu_sample.py").read_text() == "VALUE = 7\n"
    assert next(iter(metadata.distributions(path=[str(site)]))).name == "sample"
    assert said
    said.clear()
    assert install(pieces, tmp_path / "cache", said.append) == site
    assert not said
    assert [path for path in (tmp_path / "cache").iterdir()] == [site]


def test_a_wheel_that_pip_refuses_leaves_nothing(tmp_path: Path) -> None:
    wheel = tmp_path / "broken-1.0-py3-none-any.whl"
    wheel.write_bytes(b"no zip")
    pieces = tmp_path / "pieces"
    pieces.mkdir()
    with pytest.raises(InstallError, match="pip install failed"):
        install(packed(pieces, wheel), tmp_path / "cache", lambda _line: None)
    assert not list((tmp_path / "cache").iterdir())
