from __future__ import annotations

import shlex
import socket
from importlib.util import find_spec

import pytest

from kvflow.cli.main import main
from kvflow.engine.flags import flag_value

pytestmark = pytest.mark.usefixtures("plain_environment")


@pytest.fixture
def plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    if find_spec("sglang") is None:
        pytest.skip("needs SGLang: run `make install`")
    for name in ("SGLANG_PLUGINS", "SGLANG_CPU_OMP_THREADS_BIND", "PYTHONPATH"):
        monkeypatch.delenv(name, raising=False)


def printed(capsys: pytest.CaptureFixture[str], *arguments: str) -> list[str]:
    given = ["engine", "--device", "cpu", "--print-command", *arguments]
    model = [] if "--model-path" in arguments else ["--model", "org/name"]
    position = given.index("--") if "--" in given else len(given)
    assert main([*given[:position], *model, *given[position:]]) == 0
    return shlex.split(capsys.readouterr().out)


def test_options_reach_sglang(capsys: pytest.CaptureFixture[str]) -> None:
    words = printed(capsys, "--port", "4000", "--hicache-ratio", "2", "--max-total-tokens", "999")
    assert flag_value(words, "--model-path") == "org/name"
    assert flag_value(words, "--port") == "4000"
    assert flag_value(words, "--hicache-ratio") == "2"
    assert flag_value(words, "--max-total-tokens") == "999"
    assert flag_value(words, "--radix-cache-backend") == "kvflow"
    assert "SGLANG_PLUGINS=kvflow,kvflow_cpu" in words


def test_engines_on_other_ports_have_names_of_their_own(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("KVFLOW_ENGINE_ID", raising=False)
    assert f"KVFLOW_ENGINE_ID={socket.gethostname()}-4000" in printed(capsys, "--port", "4000")
    assert "KVFLOW_ENGINE_ID" not in " ".join(printed(capsys))
    monkeypatch.setenv("KVFLOW_ENGINE_ID", "mine")
    assert "KVFLOW_ENGINE_ID" not in " ".join(printed(capsys, "--port", "4000"))  # it stays


@pytest.mark.parametrize(
    ("flags", "name"),
    [
        ([], "smollm2"),
        (["--", "--served-model-name", "tiny"], "tiny"),
        (["--", "--model-path=/m"], None),
    ],
)
def test_the_small_model_is_called_by_its_name(
    flags: list[str],
    name: str | None,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("kvflow.engine.launch.resolve_model", lambda *_: "/converted/here")
    assert main(["engine", "--device", "cpu", "--print-command", *flags]) == 0
    words = shlex.split(capsys.readouterr().out)
    assert flag_value(words, "--served-model-name") == name
    assert words.count("--served-model-name") == (name is not None)


def test_stock(capsys: pytest.CaptureFixture[str]) -> None:
    words = printed(capsys, "--stock")
    assert "--radix-cache-backend" not in words
    assert "SGLANG_PLUGINS=kvflow_cpu" in words


def test_sglang_flags_after_the_dashes_win(capsys: pytest.CaptureFixture[str]) -> None:
    words = printed(
        capsys, "--port", "4000", "--", "--port", "5000", "--model-path", "/m", "--log-level=debug"
    )
    assert words[-5:] == ["--port", "5000", "--model-path", "/m", "--log-level=debug"]
    assert words.count("--port") == words.count("--model-path") == 1


def test_a_taken_port_is_told_before_the_model_is_loaded(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("kvflow.engine.launch.os.execvpe", lambda *_: pytest.fail("it started"))
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = str(other.getsockname()[1])
        status = main(["engine", "--device", "cpu", "--model", "org/name", "--port", port])

    assert status == 1
    error = capsys.readouterr().err
    assert f"something is listening on 127.0.0.1:{port} already" in error
    assert "--port" in error
