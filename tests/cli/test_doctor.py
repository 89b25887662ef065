"""``kvflow doctor`` on this machine, with something made wrong."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from kvflow.cli import machine
from kvflow.cli.main import main
from kvflow.engine import free_port


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("KVFLOW_SERVICE_URL", "KVFLOW_API_KEY", "SGLANG_PLUGINS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("KVFLOW_CACHE_DIR", str(tmp_path))


def doctor(capsys: pytest.CaptureFixture[str]) -> tuple[int, dict[str, dict[str, str]]]:
    status = main(["doctor", "--quick", "--json"])
    report = json.loads(capsys.readouterr().out)
    assert report["healthy"] == (status == 0)
    return status, {found["name"]: found for found in report["findings"]}


@pytest.fixture
def guarded_service(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    class Service(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            allowed = self.headers.get("authorization") == "Bearer right"
            self.send_response(200 if self.path == "/ready" or allowed else 401)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Service) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        monkeypatch.setenv("KVFLOW_SERVICE_URL", f"http://127.0.0.1:{server.server_port}")
        yield
        server.shutdown()
        thread.join()


def test_a_service_that_was_asked_for_and_does_not_answer(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("KVFLOW_SERVICE_URL", f"http://127.0.0.1:{free_port()}")
    status, found = doctor(capsys)
    assert status == 1
    assert found["service"]["status"] == "problem"


def test_an_address_that_is_none(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("KVFLOW_SERVICE_URL", "localhost:8100")
    status, found = doctor(capsys)
    assert status == 1
    assert "not an http(s) address" in found["service"]["detail"]


@pytest.mark.usefixtures("guarded_service")
@pytest.mark.parametrize(("key", "status"), [("right", "ok"), ("wrong", "problem")])
def test_the_key_is_tried(
    key: str, status: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("KVFLOW_API_KEY", key)
    assert doctor(capsys)[1]["service"]["status"] == status


def test_without_sglang_and_torch(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(machine, "_version", lambda _package: None)
    status, found = doctor(capsys)
    assert status == 1
    assert found["sglang"]["status"] == found["torch"]["status"] == "problem"
    assert "make install" in found["sglang"]["remedy"]


def test_words_for_people(capsys: pytest.CaptureFixture[str]) -> None:
    main(["doctor", "--quick"])
    text = capsys.readouterr().out
    assert "\nnote    service: http://127.0.0.1:8100" in text or "\nok      service" in text
    assert text.splitlines()[-1] in {"All is well.", "Something is missing; see above."}


@pytest.mark.engine
@pytest.mark.timeout(300)
def test_sglang_offers_the_backend() -> None:
    assert machine.offered_radix_backends() == (("kvflow",), None)


@pytest.mark.engine
@pytest.mark.timeout(300)
def test_an_sglang_that_does_not_load(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "zmq.py").write_text("raise ImportError('broken on purpose')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    backends, error = machine.offered_radix_backends()
    assert backends is None
    assert "broken on purpose" in (error or "")
