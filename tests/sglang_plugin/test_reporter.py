"""Reports of an engine to the service, from a scheduler that only makes steps."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace
from typing import Any

import pytest

from kvflow.protocol import EngineReport
from kvflow.sglang_plugin import reporter as reporter_module
from kvflow.sglang_plugin.metrics import NoMetrics
from kvflow.sglang_plugin.reporting import Reporting
from kvflow.sglang_plugin.settings import PluginSettings
from tests.server.running import eventually
from tests.sglang_plugin.caches import build_cache, evict, finished_request, insert

PROMPT = list(range(40))


class Service:
    """Takes reports and answers as it is told."""

    def __init__(self) -> None:
        self.status = 200
        self.answer = b'{"send_all": false}'
        self.reports: list[EngineReport] = []
        self.requests: list[tuple[str, str | None]] = []

    def handle(self, path: str, key: str | None, body: bytes) -> None:
        self.requests.append((path, key))
        self.reports.append(EngineReport.model_validate_json(body))


@contextmanager
def serving(port: int = 0) -> Iterator[tuple[Service, str]]:
    service = Service()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            service.handle(self.path, self.headers["Authorization"], body)
            self.send_response(service.status)
            self.send_header("Content-Length", str(len(service.answer)))
            self.end_headers()
            self.wfile.write(service.answer)

        def log_message(self, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield service, f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class Scheduler:
    """The scheduler's thread: makes steps, and nothing else, while it is waited for."""

    def __init__(self, url: str, **settings: Any) -> None:
        self.cache = build_cache("kvflow", 100)
        found = Reporting.of(
            PluginSettings(
                service_url=url, engine_id="e 1", **{"report_interval_s": 0.01, **settings}
            ),
            NoMetrics(),
            "tiny",
        )
        assert found is not None
        self.reporting = found
        self.cache.report_to(self.reporting.tally)
        self.requests = SimpleNamespace(
            waiting_queue=[1, 2], running_batch=SimpleNamespace(reqs=[1])
        )

    def until(self, condition: Callable[[], bool]) -> None:
        def step() -> bool:
            self.reporting.poll(self.cache, self.requests)
            return condition()

        eventually(step)

    def call(self, agent: str, tokens: list[int]) -> None:
        insert(self.cache, tokens)
        metadata = {"workflow_id": "w", "agent_id": agent, "fixed_prefix_tokens": len(tokens)}
        self.cache._learn(finished_request(tokens, (), metadata, cached=0))

    def close(self) -> None:
        self.reporting._reporter.close()


@contextmanager
def scheduling(url: str, **settings: Any) -> Iterator[Scheduler]:
    scheduler = Scheduler(url, **settings)
    try:
        yield scheduler
    finally:
        scheduler.close()


def test_the_first_report_says_it_all() -> None:
    with serving() as (service, url), scheduling(url, api_key="secret") as scheduler:
        scheduler.call("a", PROMPT)
        scheduler.until(lambda: bool(service.reports))
    report = service.reports[0]
    assert service.requests[0] == ("/v1/engines/e%201/report", "Bearer secret")
    assert (report.number, report.agents_are, report.interval_s) == (1, "all", 0.01)
    assert (report.model, report.waiting_requests, report.running_requests) == ("tiny", 2, 1)
    assert report.engine_version.startswith("sglang 0.5.")
    assert report.device is not None
    assert (report.device.size_tokens, report.device.used_tokens) == (100, 40)
    assert report.host is None
    assert report.totals.prompt_tokens == 40
    assert len(report.first_token.counts) == len(report.first_token.bounds_s) + 1
    assert [(a.client_id, a.agent_id, a.tokens, a.device_tokens) for a in report.agents] == [
        ("default", "a", 40, 40)
    ]
    assert report.agents_known == 1


def test_then_what_has_changed() -> None:
    with serving() as (service, url), scheduling(url) as scheduler:
        scheduler.call("a", PROMPT)
        scheduler.until(lambda: len(service.reports) >= 2)
        assert service.reports[1].agents_are == "changes"
        assert service.reports[1].agents == []
        evict(scheduler.cache, 40)
        scheduler.until(lambda: bool(service.reports[-1].agents))
        (moved,) = service.reports[-1].agents
        assert (moved.tokens, moved.device_tokens) == (40, 0)
        scheduler.cache.kvflow_weights._prefix_owners.clear()
        scheduler.until(lambda: bool(service.reports[-1].forgotten))
        assert service.reports[-1].forgotten == [("default", "a")]
    numbers = [report.number for report in service.reports]
    assert numbers == list(range(1, len(numbers) + 1))
    assert len({report.run_id for report in service.reports}) == 1


def test_everything_again_if_the_service_asks_for_it() -> None:
    with serving() as (service, url), scheduling(url) as scheduler:
        scheduler.call("a", PROMPT)
        service.answer = b'{"send_all": true}'
        scheduler.until(lambda: len(service.reports) >= 3)
    assert {report.agents_are for report in service.reports} == {"all"}


@pytest.mark.parametrize("status", [401, 403, 404, 405, 422])
def test_a_refusal_ends_it_for_a_long_while_and_is_said_once(
    status: int, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reporter_module, "REFUSED_S", 0.02)
    caplog.set_level(logging.INFO)
    with serving() as (service, url), scheduling(url, report_interval_s=0.001) as scheduler:
        service.status = status
        scheduler.until(lambda: len(service.reports) >= 2)
        service.status = 200
        scheduler.until(lambda: service.reports[-1].agents_are == "changes")
    said = [record for record in caplog.records if "takes no reports" in record.message]
    assert len(said) == 1
    assert said[0].levelno == logging.INFO
    assert f"HTTP {status}" in said[0].message


def test_nothing_is_gathered_after_a_refusal(monkeypatch: pytest.MonkeyPatch) -> None:
    with serving() as (service, url), scheduling(url) as scheduler:
        service.status = 404
        scheduler.until(lambda: bool(service.reports))
        monkeypatch.setattr(
            scheduler.reporting._reporter, "_gather", lambda *a: pytest.fail("gathered")
        )
        for _ in range(200):
            scheduler.reporting.poll(scheduler.cache, scheduler.requests)
        assert len(service.reports) == 1


def test_a_service_that_is_away_is_found_when_it_is_there(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reporter_module, "AWAY_S", 0.05)
    with serving() as (_, url):
        port = int(url.rpartition(":")[2])
    with scheduling(url) as scheduler:
        steps = iter(range(50))
        scheduler.until(lambda: next(steps, None) is None)
        with serving(port) as (service, _):
            scheduler.until(lambda: bool(service.reports))
    assert not [record for record in caplog.records if record.name.startswith("kvflow")]


def test_an_answer_from_something_else_is_no_receipt() -> None:
    with serving() as (service, url), scheduling(url) as scheduler:
        service.answer = b"<html>"
        scheduler.until(lambda: bool(service.reports))
        assert json.loads(service.reports[0].model_dump_json())["number"] == 1


def test_an_error_in_gathering_reaches_no_request(caplog: pytest.LogCaptureFixture) -> None:
    with serving() as (service, url), scheduling(url) as scheduler:
        del scheduler.cache.kvflow_weights
        scheduler.until(lambda: "could not be gathered" in caplog.text)
        assert not service.reports


def test_a_batch_that_cannot_be_read_reaches_no_request(caplog: pytest.LogCaptureFixture) -> None:
    with scheduling("http://127.0.0.1:9") as scheduler:
        scheduler.reporting.prefilled(object())
    assert "the engine goes on" in caplog.text


def test_no_thread_where_reports_are_off() -> None:
    for settings in (PluginSettings(service_url=None), PluginSettings(report_interval_s=None)):
        assert Reporting.of(settings, NoMetrics(), "tiny") is None
