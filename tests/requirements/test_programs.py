"""Programs that tests run are found, installed by root, or asked for."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import pytest

FILE = Path(__file__).parents[2] / "requirements" / "install.py"


@pytest.fixture
def install() -> Any:
    spec = spec_from_file_location("kvflow_install", FILE)
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Machine:
    """One that has apt-get and these programs."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, install: Any, *, root: bool) -> None:
        self.programs = {"apt-get"}
        self.brings: dict[str, str] = {}
        self.commands: list[list[str]] = []
        self.status = 0
        monkeypatch.setattr(install.shutil, "which", self.which)
        monkeypatch.setattr(install.os, "geteuid", lambda: 0 if root else 1000)
        monkeypatch.setattr(install.subprocess, "run", self.run)
        lines = ["alpha alpha alpha-browser", "beta betad"]
        monkeypatch.setattr(install, "program_lines", lambda: lines)

    def which(self, name: str, path: str | None = None) -> str | None:
        return f"/usr/bin/{name}" if name in self.programs else None

    def run(self, command: Sequence[str], **options: Any) -> subprocess.CompletedProcess[str]:
        assert options["env"]["DEBIAN_FRONTEND"] == "noninteractive"
        self.commands.append(list(command))
        if "install" in command:
            self.programs |= {self.brings.get(name, name) for name in command}
        return subprocess.CompletedProcess(list(command), self.status, "", "no network")


def test_nothing_is_done_where_all_is_there(install: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(monkeypatch, install, root=True)
    machine.programs |= {"alpha-browser", "betad"}
    install.install_programs()
    assert machine.commands == []


def test_root_installs_what_is_missing(install: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(monkeypatch, install, root=True)
    machine.programs.add("alpha")
    machine.brings = {"beta": "betad"}
    install.install_programs()
    update, installing = machine.commands
    assert update[1] == "update"
    assert installing[-1] == "beta"
    assert "alpha" not in installing


@pytest.mark.parametrize(("root", "apt"), [(False, True), (True, False)])
def test_others_are_told_what_to_install(
    install: Any, monkeypatch: pytest.MonkeyPatch, root: bool, apt: bool
) -> None:
    machine = Machine(monkeypatch, install, root=root)
    if not apt:
        machine.programs.clear()
    with pytest.raises(install.InstallError, match="sudo apt-get install alpha beta"):
        install.install_programs()
    assert machine.commands == []


def test_a_failure_says_what_apt_said(install: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(monkeypatch, install, root=True)
    machine.status = 100
    with pytest.raises(install.InstallError, match="no network"):
        install.install_programs()


def test_a_package_that_brings_no_program_is_said(
    install: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    Machine(monkeypatch, install, root=True)
    with pytest.raises(install.InstallError, match="beta is installed and brought none of betad"):
        install.install_programs()


def test_the_file_names_chromium(install: Any) -> None:
    packages = [line.split()[0] for line in install.program_lines()]
    assert "chromium" in packages
    assert len(packages) == len(set(packages))
