"""What a session writes down names no folder of the machine."""

from __future__ import annotations

from pathlib import Path

from benchmarks.gpu.grid import DRY, benches
from benchmarks.gpu.sessions import Session, SessionSetup
from benchmarks.gpu.units import NOMINAL, ArmGroup


def test_flags_name_the_model_and_no_folder(tmp_path: Path) -> None:
    group = ArmGroup(benches(DRY)[0], ("kvflow",))
    setup = SessionSetup("cpu", tmp_path, NOMINAL["cpu"], {}, lambda _line: None)
    session = Session(group, setup, {}, tmp_path / "tiny")
    shown = session.without_folder(["--model-path", str(tmp_path / "tiny"), "--port", "1"])
    assert shown == ["--model-path", "tiny", "--port", "1"]
