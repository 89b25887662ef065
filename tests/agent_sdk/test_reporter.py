"""Reporting against the real service, which is away, slow, forgetful or unwilling at times."""

from __future__ import annotations

import gc
import logging
import socket
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from kvflow.agent_sdk import KVFlowClient, Workflow
from kvflow.agent_sdk.ledger import Event, Ledger
from kvflow.agent_sdk.reporter import Reporter, reporter_for
from kvflow.agent_sdk.settings import ClientSettings
from kvflow.demo.service import ServiceProcess
from kvflow.errors import ServiceError, ServiceUnreachableError
from kvflow.graph import WorkflowState
from kvflow.protocol import AgentSpec, WorkflowSpec
from tests.agent_sdk.conftest import (
    refused_url,
    running_reporter,
    running_service,
    wait_until,
)


def warnings_in(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [
        record.getMessage()
        for record in caplog.records
        if record.name == "kvflow" and record.levelno >= logging.WARNING
    ]


def loop_of_three(reporter: Reporter) -> tuple[Workflow, list[Callable[[int], int]]]:
    workflow = Workflow("loop", reporter=reporter)

    @workflow.agent("planner", after="reviewer", join="any", entry=True)
    def planner(x: int) -> int:
        return x + 1

    @workflow.agent("coder", after="planner")
    def coder(x: int) -> int:
        return x * 2

    @workflow.agent("reviewer", after="coder")
    def reviewer(x: int) -> int:
        return x - 3

    return workflow, [planner, coder, reviewer]


def test_steps_arrive_in_order(reporter: Reporter, client: KVFlowClient) -> None:
    workflow, (planner, coder, reviewer) = loop_of_three(reporter)
    with workflow.run() as run:
        assert reviewer(coder(planner(1))) == 1
        assert run.flush()
        view = client.get_workflow(run.workflow_id)
        assert (view.steps_started, view.mispredictions, view.version) == (3, 0, 6)
        assert client.steps(run.workflow_id).steps_to_execution == {
            "planner": 1, "coder": 2, "reviewer": 3,
        }  # fmt: skip
    assert list(client.list_workflows()) == []


def test_nobody_there_is_one_warning_and_nothing_else(caplog: pytest.LogCaptureFixture) -> None:
    with running_reporter(refused_url()) as reporter:
        workflow, (planner, coder, reviewer) = loop_of_three(reporter)
        for _ in range(3):
            with workflow.run() as run:
                assert reviewer(coder(planner(1))) == 1
                assert not run.flush()
        other, _ = loop_of_three(reporter)
        with other.run() as run, run.step("planner"):
            for _ in range(3):
                with pytest.raises(ServiceUnreachableError):  # tries it at once
                    run.register()
    (warning,) = warnings_in(caplog)
    assert reporter.settings.url in warning
    assert "kvflow serve" in warning
    assert "KVFLOW_SERVICE_URL" in warning


def test_the_service_is_killed_and_comes_back(
    service_process: ServiceProcess, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "kvflow")
    with (
        running_reporter(service_process.url) as reporter,
        KVFlowClient(service_process.url, timeout_s=10) as client,
    ):
        workflow, (planner, coder, reviewer) = loop_of_three(reporter)
        truth = WorkflowState(workflow.graph)
        with workflow.run() as run:
            x = coder(planner(1))
            assert run.flush()
            with run.step("reviewer"):
                assert run.flush()
                service_process.kill()
            x = coder(planner(reviewer(x)))
            assert x == 4
            assert not run.flush()
            service_process.start()
            wait_until(run.flush)

            for agent_id in ("planner", "coder", "reviewer", "reviewer", "planner", "coder"):
                truth.start(agent_id)
                truth.finish(agent_id)
            view = client.get_workflow(run.workflow_id)
            assert view.version == truth.version
            assert {
                agent.agent_id: agent.steps_to_execution for agent in view.agents
            } == truth.steps_to_execution()
        assert list(client.list_workflows()) == []
    assert len(warnings_in(caplog)) == 1
    assert "answers again" in caplog.text


def test_it_need_not_be_there_at_the_start(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    process = ServiceProcess(tmp_path / "service.log")
    with running_reporter(process.url) as reporter:
        workflow, (planner, *_) = loop_of_three(reporter)
        with workflow.run() as run:
            assert planner(1) == 2
            assert not run.flush()
            process.start()
            try:
                wait_until(run.flush)
                with KVFlowClient(process.url) as client:
                    assert client.get_workflow(run.workflow_id).steps_started == 1
            finally:
                process.kill()
            assert planner(1) == 2
    assert len(warnings_in(caplog)) == 1


def test_a_run_that_ended_while_the_service_was_away_leaves_nothing(
    service_process: ServiceProcess,
) -> None:
    with running_reporter(service_process.url) as reporter:
        workflow, (planner, *_) = loop_of_three(reporter)
        with workflow.run():
            planner(1)
            service_process.kill()
            planner(1)
        with workflow.run() as run:
            planner(1)
            assert not run.flush()
            service_process.start()
            wait_until(run.flush)
            with KVFlowClient(service_process.url) as client:
                assert [w.workflow_id for w in client.list_workflows()] == [run.workflow_id]


def test_a_workflow_that_expired_is_made_again(reporter: Reporter, client: KVFlowClient) -> None:
    workflow, (planner, *_) = loop_of_three(reporter)
    with workflow.run() as run:
        planner(1)
        with run.step("coder"):
            assert run.flush()
            client.delete_workflow(run.workflow_id)
        assert run.flush()
        assert client.get_workflow(run.workflow_id).version == 4
        assert client.steps(run.workflow_id).steps_to_execution["reviewer"] == 1


def test_a_service_with_another_idea_of_the_run_is_put_right(
    reporter: Reporter, client: KVFlowClient, caplog: pytest.LogCaptureFixture
) -> None:
    workflow, _ = loop_of_three(reporter)
    with workflow.run() as run, run.step("planner"):
        with run.step("coder"):
            assert run.flush()
            spec = client.get_workflow(run.workflow_id)
            client.delete_workflow(run.workflow_id)
            client.create_workflow(
                {
                    "workflow_id": run.workflow_id,
                    "name": spec.name,
                    "agents": [{"agent_id": a.agent_id, "join": a.join} for a in spec.agents],
                    "edges": [edge.model_dump() for edge in spec.edges],
                    "entry": spec.entry,
                }
            )
        assert run.flush()
        view = client.get_workflow(run.workflow_id)
        assert {a.agent_id: a.running for a in view.agents} == {
            "planner": 1, "coder": 0, "reviewer": 0,
        }  # fmt: skip
    assert warnings_in(caplog) == []


def test_a_refused_run_is_one_warning(
    reporter: Reporter, client: KVFlowClient, caplog: pytest.LogCaptureFixture
) -> None:
    client.create_workflow({"workflow_id": "mine", "agents": [{"agent_id": "x"}], "entry": ["x"]})
    workflow, (planner, *_) = loop_of_three(reporter)
    with workflow.run("mine") as run:
        assert planner(1) == 2
        assert not run.flush()
        with pytest.raises(ServiceError) as caught:
            run.register()
        assert caught.value.status == 409
        assert planner(1) == 2
    (warning,) = warnings_in(caplog)
    assert "'mine'" in warning
    assert client.get_workflow("mine").steps_started == 0
    with workflow.run() as other:
        planner(1)
        assert other.flush()


def test_a_wrong_key_is_one_warning_that_says_so(caplog: pytest.LogCaptureFixture) -> None:
    with running_service(api_key="right") as url, running_reporter(url) as reporter:
        workflow, (planner, *_) = loop_of_three(reporter)
        with workflow.run() as run:
            assert planner(1) == 2
            with pytest.raises(ServiceError):
                run.register()
    (warning,) = warnings_in(caplog)
    assert "KVFLOW_API_KEY. Your agents run on" in warning
    assert "kvflow serve" not in warning  # it runs


def test_register_tells_what_is_wrong() -> None:
    with running_reporter(refused_url()) as reporter:
        workflow, _ = loop_of_three(reporter)
        for _ in range(2):
            with pytest.raises(ServiceUnreachableError):
                workflow.run().register()


def test_register(reporter: Reporter, client: KVFlowClient) -> None:
    workflow, _ = loop_of_three(reporter)
    run = workflow.register()
    assert [w.workflow_id for w in client.list_workflows()] == [run.workflow_id]
    assert workflow.register() is run
    workflow.close()
    assert list(client.list_workflows()) == []


def test_agents_do_not_wait_for_a_service_that_does_not_answer() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        with running_reporter(url, timeout_s=100) as reporter:
            workflow, (planner, *_) = loop_of_three(reporter)
            with workflow.run() as run:
                connection, _ = listener.accept()
                with connection:
                    assert connection.recv(1000).startswith(b"POST /v1/workflows")
                    # The reporter waits for an answer now, for a long time.
                    assert [planner(x) for x in range(100)] == list(range(1, 101))
                    assert not run.flush(timeout_s=0.0)
                    assert not run.close(timeout_s=0.0)
                reporter.stop(timeout_s=0.0)


def test_many_threads_lose_no_event(reporter: Reporter, client: KVFlowClient) -> None:
    workflow, (planner, coder, reviewer) = loop_of_three(reporter)
    with workflow.run() as run:

        def work() -> None:
            with run.activate():
                for x in range(50):
                    assert reviewer(coder(planner(x))) == 2 * x - 1

        threads = [threading.Thread(target=work) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert run.flush()
        view = client.get_workflow(run.workflow_id)
        assert (view.steps_started, view.version) == (8 * 50 * 3, 2 * 8 * 50 * 3)
        assert [agent.running for agent in view.agents] == [0, 0, 0]


def test_a_workflow_that_is_garbage_ends_its_default_run(
    reporter: Reporter, client: KVFlowClient
) -> None:
    workflow, agents = loop_of_three(reporter)
    agents[0](1)
    workflow.register()
    assert len(list(client.list_workflows())) == 1
    del workflow, agents
    gc.collect()
    wait_until(lambda: list(client.list_workflows()) == [])


def test_stopping_ends_open_runs_and_the_thread(service_url: str, client: KVFlowClient) -> None:
    with running_reporter(service_url) as reporter:
        workflow, (planner, *_) = loop_of_three(reporter)
        run = workflow.run()
        run.register()
        threads = [t for t in threading.enumerate() if t.name == "kvflow-reporter"]
        reporter.stop(10)
        assert not any(thread.is_alive() for thread in threads[-1:])
        assert list(client.list_workflows()) == []
        with run.activate():
            assert planner(1) == 2  # not reported, not disturbed
        reporter.stop(10)


def test_what_comes_after_the_end_of_a_run_is_dropped(
    reporter: Reporter, client: KVFlowClient
) -> None:
    spec = WorkflowSpec(workflow_id="w", agents=[AgentSpec(agent_id="a")], entry=["a"])
    ledger = Ledger(spec)
    reporter.report(ledger, Event("step_started", "a", "1"))
    assert reporter.ask(ledger, "close").result(10)
    reporter.report(ledger, Event("step_finished", "a", "1"))
    assert not reporter.ask(ledger, "settle").result(10)
    assert list(client.list_workflows()) == []


def test_one_reporter_per_service() -> None:
    settings = ClientSettings("http://127.0.0.1:1")
    assert reporter_for(settings) is reporter_for(ClientSettings("http://127.0.0.1:1"))
    assert reporter_for(settings) is not reporter_for(ClientSettings("http://127.0.0.1:2"))


def test_requests_of_the_reporter_are_not_in_the_users_log(
    reporter: Reporter, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    workflow, (planner, *_) = loop_of_three(reporter)
    with workflow.run():
        planner(1)
    assert [r for r in caplog.records if r.name.startswith("httpx2")] == []


SCRIPT_HEAD = """
import os, sys
from kvflow.agent_sdk import Workflow
workflow = Workflow("script", agents=["a"], service_url=sys.argv[1], timeout_s=10)
@workflow.agent("a")
def a(x):
    return x + 1
"""


def run_script(body: str, url: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", SCRIPT_HEAD + textwrap.dedent(body), url],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_the_end_of_the_process_ends_its_runs(service_url: str, client: KVFlowClient) -> None:
    done = run_script(
        """
        a(1)
        workflow.run().__enter__()
        workflow.run("kept", delete_on_close=False).__enter__()
        print(a(2))
        """,
        service_url,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "3\n", "")
    assert [w.workflow_id for w in client.list_workflows()] == ["kept"]
    assert client.get_workflow("kept").version == 2


def test_the_end_of_the_process_waits_for_nobody(service_url: str) -> None:
    done = run_script("print(a(1))", refused_url())
    assert (done.returncode, done.stdout) == (0, "2\n")
    assert done.stderr.count("KVFlow") == 2  # one warning, which names the KVFlow service
    assert len(done.stderr.splitlines()) == 1


def test_a_forked_child_reports_for_itself_and_ends_nothing(
    service_url: str, client: KVFlowClient
) -> None:
    done = run_script(
        """
        import warnings
        warnings.simplefilter("ignore", DeprecationWarning)  # fork with threads, from 3.12 on
        from kvflow.agent_sdk import KVFlowClient
        with workflow.run("shared") as run, run.step("a"):
            run.flush()
            child = os.fork()
            a(1)
            assert run.flush()
            if child == 0:
                sys.exit(0)
            assert os.waitpid(child, 0)[1] == 0
            a(1)
            assert run.flush()
            with KVFlowClient(sys.argv[1]) as client:
                view = client.get_workflow("shared")
                print(view.steps_started, view.agents[0].running)
        """,
        service_url,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "4 0\n", "")
    assert list(client.list_workflows()) == []


def test_a_forked_child_has_its_own_default_run(service_url: str, client: KVFlowClient) -> None:
    done = run_script(
        """
        import warnings
        warnings.simplefilter("ignore", DeprecationWarning)
        workflow.register()
        child = os.fork()
        run = workflow.register()
        a(1)
        run.flush()
        print(run.workflow_id, flush=True)
        if child == 0:
            sys.exit(0)
        assert os.waitpid(child, 0)[1] == 0
        from kvflow.agent_sdk import KVFlowClient
        with KVFlowClient(sys.argv[1]) as client:
            print(len(list(client.list_workflows())), client.get_workflow(run.workflow_id).version)
        """,
        service_url,
    )
    assert (done.returncode, done.stderr) == (0, "")
    first, second, last = done.stdout.splitlines()
    assert first != second
    assert last == "1 2"
    assert list(client.list_workflows()) == []
