"""Wheels are trimmed, and are still whole by their own records."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from benchmarks.gpu.wheels import WheelError, check_wheel, trim_wheel, wheel_metadata
from tests.gpu.wheels import make_wheel

MEMBERS = {
    "sample/__init__.py": b"value = 1\n",
    "sample/needed.so": b"kept" * 100,
    "sample/bulk.so": b"dropped" * 1000,
}


def test_what_a_wheel_is(tmp_path: Path) -> None:
    name, version, requirements = wheel_metadata(make_wheel(tmp_path, "some-name"))
    assert (name, version) == ("some-name", "1.0")
    assert requirements == ["torch==2.11.0", "numpy"]


def test_a_trimmed_wheel_is_whole_and_smaller(tmp_path: Path) -> None:
    source = make_wheel(tmp_path, members=MEMBERS)
    target = tmp_path / "trimmed.whl"
    trimmed = trim_wheel(source, target, lambda member: member.endswith("bulk.so"))
    assert trimmed.dropped == ("sample/bulk.so",)
    assert trimmed.dropped_bytes > 0
    check_wheel(target)
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target) as new:
        assert set(old.namelist()) - set(new.namelist()) == {"sample/bulk.so"}
        assert new.read("sample/needed.so") == MEMBERS["sample/needed.so"]
        assert b"bulk.so" not in new.read("sample-1.0.dist-info/RECORD")


def test_pip_installs_a_trimmed_wheel(tmp_path: Path) -> None:
    source = make_wheel(tmp_path, members=MEMBERS)
    target = tmp_path / "out" / source.name
    target.parent.mkdir()
    trim_wheel(source, target, lambda member: member.endswith("bulk.so"))
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps"]
    subprocess.run([*command, "--target", str(tmp_path / "site"), str(target)], check=True)
    assert (tmp_path / "site" / "sample" / "needed.so").is_file()
    assert not (tmp_path / "site" / "sample" / "bulk.so").exists()


def test_a_wheel_s_own_metadata_stays(tmp_path: Path) -> None:
    source = make_wheel(tmp_path)
    target = tmp_path / "trimmed.whl"
    trim_wheel(source, target, lambda _member: True)
    check_wheel(target)
    assert wheel_metadata(target)[0] == "sample"


@pytest.mark.parametrize(
    ("member", "data", "problem"),
    [
        ("sample/__init__.py", b"value = 2\n", "is not what RECORD says"),
        ("sample/more.py", b"", "is in RECORD or in the wheel"),
    ],
)
def test_a_wheel_that_is_not_what_it_records_is_refused(
    tmp_path: Path, member: str, data: bytes, problem: str
) -> None:
    source = make_wheel(tmp_path)
    damaged = tmp_path / "damaged.whl"
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(damaged, "w") as new:
        content = {name: old.read(name) for name in old.namelist()} | {member: data}
        for name, inside in content.items():
            new.writestr(name, inside)
    with pytest.raises(WheelError, match=problem):
        check_wheel(damaged)


def test_a_zip_that_is_no_wheel_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "no.whl"
    with zipfile.ZipFile(path, "w") as other:
        other.writestr("a.py", "")
    with pytest.raises(WheelError, match="has no RECORD"):
        check_wheel(path)
