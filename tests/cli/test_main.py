from __future__ import annotations

import subprocess
import sys

import pytest

from kvflow import __version__
from kvflow.cli.main import main


def run(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )


def test_help_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    for command in ("engine", "serve", "demo", "trace", "convert-trace", "doctor", "version"):
        assert f"\n  {command} " in text


def test_the_first_screen_says_how_to_begin_and_is_whole(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main([]) == 2
    printed = capsys.readouterr()
    text = printed.out + printed.err
    assert "To begin: kvflow doctor" in text
    assert "..." not in text.replace("[ARGS]...", "")  # no summary is cut off


@pytest.mark.parametrize("arguments", [["-h"], ["serve", "-h"], ["keys", "set", "-h"]])
def test_help_has_a_short_name(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 0
    assert capsys.readouterr().out.startswith("Usage: kvflow")


def test_the_version_as_an_option(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"kvflow {__version__}\n"


def test_a_flag_of_sglang_in_the_wrong_place(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["engine", "--log-level", "debug"]) == 2
    assert "kvflow engine -- --log-level debug" in capsys.readouterr().err


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["version"]) == 0
    assert capsys.readouterr().out.startswith("kvflow 0.1.0\npython 3.")


@pytest.mark.parametrize("arguments", [["bogus"], ["engine", "--prot", "1"], []])
def test_wrong_usage(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert "Usage: kvflow" in captured.out + captured.err


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (["engine", "--device", "tpu"], 2, "--device: 'tpu' is unknown; use auto, cpu or cuda"),
        (["engine", "--model", "nowhere"], 2, "model: 'nowhere' is not a folder here"),
        (["engine", "--port", "0"], 2, "port: 0 is not a port"),
    ],
)
def test_an_error_is_a_message_and_a_status(
    arguments: list[str], status: int, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == status
    text = capsys.readouterr().err
    assert words in text
    assert "Traceback" not in text


def test_debug_shows_where_it_came_from(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--debug", "engine", "--device", "tpu"]) == 2
    text = capsys.readouterr().err
    assert "Traceback" in text
    assert text.rstrip().endswith("use auto, cpu or cuda")


def test_a_defect_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    def defect(*_: object, **__: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("kvflow.cli.engine.prepare", defect)
    with pytest.raises(ZeroDivisionError):
        main(["engine"])


class TestMissingExtra:
    @pytest.mark.parametrize("package", ["typer", "rich"])
    def test_of_the_command_itself(self, package: str) -> None:
        code = f"import sys; sys.modules[{package!r}] = None; from kvflow.cli.main import main; "
        done = run(code + "sys.exit(main(['demo']))")
        assert done.returncode == 1
        assert f"needs the package {package}, which is not installed" in done.stderr
        assert "pip install 'kvflow[" in done.stderr
        assert "Traceback" not in done.stderr

    def test_of_one_command_leaves_the_others_alone(self) -> None:
        code = "import sys; sys.modules['fastapi'] = None; from kvflow.cli.main import main; "
        done = run(code + "sys.exit(main(['serve']))")
        assert done.returncode == 1
        assert "pip install 'kvflow[server]'" in done.stderr
        assert run(code + "sys.exit(main(['version']))").returncode == 0

    def test_of_kvflow_s_own_module_is_a_defect(self) -> None:
        done = run(
            "import sys; sys.modules['kvflow.engine.launch'] = None\n"
            "from kvflow.cli.main import main; sys.exit(main(['engine']))"
        )
        assert "ModuleNotFoundError" in done.stderr


def test_only_the_command_asked_for_is_loaded() -> None:
    done = run(
        "import sys; from kvflow.cli.main import main; main(['version']); "
        "print(sorted(set(sys.modules) & {'fastapi', 'torch', 'sglang', 'kvflow.engine'}))"
    )
    assert done.stdout.endswith("[]\n")
