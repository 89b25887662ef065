"""The service is killed in the middle of a run; the engine, the SDK and the requests go on."""

from __future__ import annotations

import signal
from collections.abc import Callable

import pytest

from kvflow.agent_sdk import Workflow, request_metadata
from tests.engines import Engines, RunningEngine, words
from tests.sglang_plugin.service_process import engine_of, eventually, service

pytestmark = [pytest.mark.engine, pytest.mark.timeout(600)]


def test_kill_9_fails_no_request_and_all_recovers(
    engines: Engines, service_port: int, caplog: pytest.LogCaptureFixture
) -> None:
    port = service_port
    url = f"http://127.0.0.1:{port}"
    engine = engine_of(engines, port)
    workflow = Workflow("killed", service_url=url)
    ask = {name: _agent(workflow, engine, name) for name in ("a", "b", "c")}

    def one_round() -> list[str]:
        return [ask[name]() for name in ("a", "b", "c")]

    with workflow.run() as run:
        with service(port) as process:
            run.register()
            eventually(lambda: engine.metric("kvflow_live_workflows") == 1)
            first = one_round()
            assert engine.metric("kvflow_lease_held") == 1
            ask["a"]()
            process.send_signal(signal.SIGKILL)
            rest = [ask["b"](), ask["c"]()]
            assert [first[0], *rest] == first
            assert one_round() == first
        eventually(lambda: engine.metric("kvflow_lease_held") == 0)
        assert engine.metric("kvflow_live_workflows") == 0
        assert one_round() == first
        with service(port):
            eventually(lambda: engine.metric("kvflow_lease_held") == 1)
            assert one_round() == first
            # The SDK gives the new service the workflow it has lost.
            eventually(lambda: engine.metric("kvflow_live_workflows") == 1)
    assert len([r for r in caplog.records if r.name == "kvflow" and r.levelname == "WARNING"]) <= 1
    assert engine.process.is_running()


def _agent(workflow: Workflow, engine: RunningEngine, name: str) -> Callable[[], str]:
    after = {"a": ["c"], "b": ["a"], "c": ["b"]}[name]
    messages = [
        {"role": "system", "content": " ".join(words(f"agent {name}", 200))},
        {"role": "user", "content": "Say one word."},
    ]

    @workflow.agent(name, after=after, entry=name == "a")
    def step() -> str:
        return engine.chat(messages, max_tokens=4, custom_params=request_metadata()).text

    return step
