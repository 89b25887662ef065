"""The life of an engine's process, with a small server in its place."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from kvflow.engine import free_port, run_dir
from kvflow.engine import process as process_module
from kvflow.engine.command import EngineCommand
from kvflow.engine.process import EngineProcess
from kvflow.errors import EnvironmentProblemError

# Answers 503 and then 200 to /health, has a child like SGLang, and leaves a file where it is told
# to put temporary ones.
SERVER = """
import http.server, os, pathlib, subprocess, sys, tempfile
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
pathlib.Path(tempfile.mkdtemp(), "socket").touch()
print("child", child.pid, flush=True)
asked = []
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        asked.append(self.path)
        self.send_response(200 if len(asked) > 1 else 503)
        self.end_headers()
    def log_message(self, *_):
        pass
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""
STUBBORN = "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)\n" + SERVER


@pytest.fixture(autouse=True)
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("KVFLOW_CACHE_DIR", str(tmp_path / "c"))
    monkeypatch.setattr(run_dir, "_LONGEST_PARENT", 1000)
    monkeypatch.setattr(process_module, "_POLL_S", 0.05)
    monkeypatch.setattr(process_module, "_ORPHAN_GRACE_S", 0.2)
    return tmp_path / "c"


def command(code: str, port: int | None = None) -> EngineCommand:
    port = port or free_port()
    argv = (sys.executable, "-c", code, str(port))
    return EngineCommand(argv=argv, env=dict(os.environ), host="127.0.0.1", port=port)


def engine(code: str, tmp_path: Path, start_timeout_s: float = 20) -> EngineProcess:
    log_path = tmp_path / "engine.log"
    return EngineProcess(command(code), log_path=log_path, start_timeout_s=start_timeout_s)


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def eventually(condition: Callable[[], bool], limit_s: float = 10) -> bool:
    deadline = time.monotonic() + limit_s
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.05)
    return condition()


def child_of(process: EngineProcess) -> int:
    return int(process.log_path.read_text().split()[1])


def test_up_inside_the_block_and_gone_with_its_children_after_it(tmp_path: Path) -> None:
    with engine(SERVER, tmp_path) as running:
        assert running.is_running()
        pid, child = running.pid, child_of(running)
        assert pid is not None
        assert alive(child)
    assert not running.is_running()
    assert not alive(pid)
    assert eventually(lambda: not alive(child))


def test_an_engine_that_ignores_the_interrupt_is_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process_module, "_STOP_GRACE_S", 0.3)
    with engine(STUBBORN, tmp_path) as running:
        pid, child = running.pid, child_of(running)
    assert pid is not None
    assert not alive(pid)
    assert eventually(lambda: not alive(child))


def test_stop_twice_and_without_start(tmp_path: Path) -> None:
    process = engine(SERVER, tmp_path)
    process.stop()
    process.start()
    process.stop()
    process.stop()
    assert process.pid is None


def test_temporary_files_are_cleared_away(tmp_path: Path, cache: Path) -> None:
    with engine(SERVER, tmp_path):
        assert list((cache / "run").glob("*/*/socket"))
    assert list((cache / "run").iterdir()) == []


def test_an_engine_that_ends_while_starting_is_told_with_its_last_words(tmp_path: Path) -> None:
    process = engine("raise SystemExit('no such model')", tmp_path)
    with pytest.raises(EnvironmentProblemError, match="no such model") as problem:
        process.start()
    assert "exit status 1" in problem.value.problem
    assert str(process.log_path) in problem.value.remedy
    assert not process.is_running()


def test_an_engine_that_never_answers_is_stopped(tmp_path: Path) -> None:
    process = engine("import time; print('loading', flush=True); time.sleep(600)", tmp_path, 1.5)
    with pytest.raises(EnvironmentProblemError, match=r"did not answer within 2 s[^$]*loading"):
        process.start()
    assert not process.is_running()


def test_a_taken_port_is_told_before_anything_is_started(tmp_path: Path) -> None:
    with engine(SERVER, tmp_path) as running:
        second = EngineProcess(command("pass", running.command.port), log_path=tmp_path / "2.log")
        with pytest.raises(EnvironmentProblemError, match="--port"):
            second.start()
        assert not second.log_path.exists()


def test_it_ends_when_the_process_that_started_it_is_killed(tmp_path: Path) -> None:
    starter = f"""
import os, signal
from pathlib import Path
from kvflow.engine import run_dir
from tests.engine.test_process import SERVER, engine
run_dir._LONGEST_PARENT = 1000
process = engine(SERVER, Path({str(tmp_path)!r}))
process.start()
print(process.pid, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
    done = subprocess.run(
        [sys.executable, "-c", starter], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    pid = int(done.stdout)
    child = int((tmp_path / "engine.log").read_text().split()[1])
    try:
        assert eventually(lambda: not alive(pid))
    finally:
        for left in (pid, child):
            if alive(left):
                os.kill(left, signal.SIGKILL)


def test_says_that_another_program_took_the_port_meanwhile(tmp_path: Path) -> None:
    late = """
import socket, sys
socket.socket().bind(("127.0.0.1", int(sys.argv[1])))
"""
    with socket.socket() as taken:
        # Bound but not listening: a check by connecting takes it for free.
        taken.bind(("127.0.0.1", 0))
        command_ = command(late, taken.getsockname()[1])
        process = EngineProcess(command_, log_path=tmp_path / "engine.log", start_timeout_s=20)
        with pytest.raises(EnvironmentProblemError, match=f"took port {command_.port}"):
            process.start()
