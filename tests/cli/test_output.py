from __future__ import annotations

from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from kvflow.cli.output import check_writable, say, write
from kvflow.errors import InvalidInputError


def test_lines_are_printed_as_they_are() -> None:
    text = StringIO()
    say(Console(file=text, width=20), "[bold]12 of 34[/bold] " + "x" * 40)
    assert text.getvalue() == "[bold]12 of 34[/bold] " + "x" * 40 + "\n"


def test_a_file_is_written_and_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = StringIO()
    file = tmp_path / "figures.json"
    write("{}", str(file), "Figures", Console(file=said))
    assert file.read_text() == "{}\n"
    assert said.getvalue() == f"Figures: {file}\n"
    assert capsys.readouterr().out == ""


def test_a_dash_is_stdout_and_nothing_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    said = StringIO()
    write("{}", "-", "Figures", Console(file=said))
    assert capsys.readouterr().out == "{}\n"
    assert said.getvalue() == ""


def test_what_can_be_written_is_let_through(tmp_path: Path) -> None:
    for file in (None, "-", str(tmp_path / "new.json")):
        check_writable("--json", file)


def test_what_cannot_be_written_is_refused_by_the_name_of_its_option(tmp_path: Path) -> None:
    for file in (str(tmp_path), str(tmp_path / "none" / "f.json")):
        with pytest.raises(InvalidInputError) as caught:
            check_writable("--html", file)
        assert caught.value.field == ("--html",)
