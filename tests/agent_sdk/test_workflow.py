"""Workflows as users write them, against the real service."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator

import pytest

from kvflow.agent_sdk import Agent, Edge, KVFlowClient, Workflow, choice, request_metadata
from kvflow.agent_sdk.reporter import Reporter
from kvflow.errors import ConflictError, GraphError, InvalidInputError
from kvflow.graph import AgentStepGraph
from kvflow.protocol import RequestMetadata


def test_decorated_functions(workflow: Workflow, client: KVFlowClient) -> None:
    @workflow.agent("planner", after=["reviewer"], entry=True, join="any", fixed_prefix_tokens=12)
    def planner(task: str) -> str:
        return task + "!"

    @workflow.agent("coder", after=[choice("planner")])
    def coder(plan: str) -> str:
        return plan * 2

    @workflow.agent("writer", after=[choice("planner")])
    def writer(plan: str) -> str:
        return plan

    @workflow.agent("reviewer", after=["coder", "writer"], join="any")
    def reviewer(text: str) -> int:
        return len(text)

    with workflow.run() as run:
        assert reviewer(coder(planner("abc"))) == 8
        assert run.flush()
        view = client.get_workflow(run.workflow_id)
        assert view.name == "test"
        assert view.entry == ["planner"]
        assert view.mispredictions == 0
        assert {(e.source, e.target, e.kind) for e in view.edges} == {
            ("reviewer", "planner", "always"),
            ("planner", "coder", "choice"),
            ("planner", "writer", "choice"),
            ("coder", "reviewer", "always"),
            ("writer", "reviewer", "always"),
        }
        assert {a.agent_id: (a.join, a.fixed_prefix_tokens) for a in view.agents} == {
            "planner": ("any", 12),
            "coder": ("all", None),
            "writer": ("all", None),
            "reviewer": ("any", None),
        }
        # The branch not taken is as far away as the loop is long.
        assert {a.agent_id: a.steps_to_execution for a in view.agents} == {
            "planner": 1, "coder": 2, "writer": 2, "reviewer": 3,
        }  # fmt: skip


async def test_async_agents_in_parallel(workflow: Workflow, client: KVFlowClient) -> None:
    @workflow.agent("split")
    async def split(n: int) -> list[int]:
        return list(range(n))

    both_running = asyncio.Event()

    @workflow.agent("worker", after=["split"])
    async def worker(x: int, run) -> int:
        if x == 2:
            assert await asyncio.to_thread(run.flush)
            view = await asyncio.to_thread(client.get_workflow, run.workflow_id)
            assert {a.agent_id: a.running for a in view.agents}["worker"] == 3
            both_running.set()
        await both_running.wait()
        return x * x

    @workflow.agent("join", after=["worker"])
    async def join(results: list[int]) -> AsyncIterator[int]:
        for result in results:
            yield result

    async with workflow.run() as run:
        squares = await asyncio.gather(*(worker(x, run) for x in await split(3)))
        assert [x async for x in join(squares)] == [0, 1, 4]
        assert await asyncio.to_thread(run.flush)
        view = await asyncio.to_thread(client.get_workflow, run.workflow_id)
        assert view.steps_started == 5
        assert [a.running for a in view.agents] == [0, 0, 0]


def test_one_definition_runs_many_times(workflow: Workflow, client: KVFlowClient) -> None:
    @workflow.agent("a")
    def a() -> None:
        pass

    with workflow.run() as one, workflow.run() as two:
        a()
        with one.activate():
            a()
            a()
        assert one.flush()
        assert two.flush()
        assert client.get_workflow(one.workflow_id).steps_started == 2
        assert client.get_workflow(two.workflow_id).steps_started == 1


def test_declared_as_data(reporter: Reporter, client: KVFlowClient) -> None:
    workflow = Workflow(
        name="review",
        agents=[
            "planner",
            Agent("coder", fixed_prefix_tokens=4),
            {"agent_id": "end", "join": "any"},
        ],
        edges=[("planner", "coder"), ("planner", "end", "choice"), Edge("coder", "end")],
        ttl_s=60,
        reporter=reporter,
    )

    @workflow.agent("planner")
    def plan() -> str:
        return "plan"

    @workflow.agent("planner")
    async def plan_async() -> str:
        return "plan"

    run = workflow.register()
    assert plan() == asyncio.run(plan_async()) == "plan"
    assert run.flush()
    view = client.get_workflow(run.workflow_id)
    assert (view.name, view.ttl_s, view.entry, view.steps_started) == (
        "review", 60, ["planner"], 2,
    )  # fmt: skip
    assert workflow.graph == AgentStepGraph(
        [Agent("planner"), Agent("coder", fixed_prefix_tokens=4), Agent("end", "any")],
        [Edge("planner", "coder"), Edge("planner", "end", "choice"), Edge("coder", "end")],
        ["planner"],
    )


def test_decorators_of_a_declared_workflow_only_name_the_agent() -> None:
    workflow = Workflow(agents=["planner"])
    with pytest.raises(InvalidInputError, match=r"^@agent\('planer'\): .*'planner'\?"):
        workflow.agent("planer")
    with pytest.raises(InvalidInputError, match=r"^@agent\('planner'\)\.after: "):
        workflow.agent("planner", after=["x"])
    with pytest.raises(InvalidInputError, match=r"^@agent\('planner'\)\.join: "):
        workflow.agent("planner", join="any")


def test_mistakes_show_when_the_workflow_is_first_used(workflow: Workflow) -> None:
    @workflow.agent("coder", after=["planer"])
    def coder() -> None:
        raise AssertionError("must not run")

    @workflow.agent("planner")
    def planner() -> None:
        pass

    for use in (coder, workflow.run, workflow.register, lambda: workflow.graph):
        with pytest.raises(
            InvalidInputError, match=r"^@agent\('coder'\)\.after\[0\]: .*'planner'\?"
        ):
            use()


def test_a_graph_that_cannot_run(workflow: Workflow) -> None:
    workflow.agent("start")(print)
    workflow.agent("loop", after=["start", "loop"])(print)
    with pytest.raises(GraphError, match=r"^@agent\('loop'\): .*join 'any'"):
        workflow.run()


def test_a_workflow_without_agents() -> None:
    with pytest.raises(InvalidInputError, match=r"^agents: "):
        Workflow().run()


def test_agents_cannot_be_added_to_what_has_run(workflow: Workflow) -> None:
    workflow.agent("a")(print)
    with workflow.run(), pytest.raises(ConflictError, match=r"@agent\('b'\)"):
        workflow.agent("b")


@pytest.mark.parametrize(
    ("field", "arguments"),
    [
        ("ttl_s", {"ttl_s": 0}),
        ("ttl_s", {"ttl_s": float("nan")}),
        ("name", {"name": "x" * 257}),
        ("service_url", {"service_url": "localhost"}),
        ("client_id", {"client_id": "?"}),
        ("engine_urls[0]", {"engine_urls": ["localhost:30000"]}),
        ("agents", {"edges": [("a", "b")]}),
        ("agents", {"entry": ["a"]}),
    ],
)
def test_wrong_arguments_are_named(field: str, arguments: dict[str, object]) -> None:
    with pytest.raises(InvalidInputError) as caught:
        Workflow(**arguments)
    assert str(caught.value).startswith(field + ": ")


def test_a_wrong_run_id_is_named(workflow: Workflow) -> None:
    workflow.agent("a")(print)
    with pytest.raises(InvalidInputError, match=r"^workflow_id: "):
        workflow.run("not ok")


def test_settings_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KVFLOW_CLIENT_ID", "team-a")
    monkeypatch.setenv("KVFLOW_SERVICE_URL", "off")
    with Workflow(agents=["a"]).step("a") as step:
        assert step.client_id == "team-a"


def test_without_a_service_the_steps_travel_with_the_requests() -> None:
    workflow = Workflow(
        agents=["a", "b", "c"], edges=[("a", "b"), ("b", "c")], ttl_s=60, service_url="off"
    )
    with workflow.run() as run:
        run.register()
        with run.step("a"):
            params = request_metadata()
        assert params == {
            "kvflow": {
                "workflow_id": run.workflow_id,
                "agent_id": "a",
                "client_id": "default",
                "steps_reported": True,
                "version": 1,
                "ttl_s": 60,
            },
            "kvflow_steps": {"a": 0, "b": 1, "c": 2},
        }
        RequestMetadata.model_validate(
            {**params["kvflow"], "steps_to_execution": params["kvflow_steps"]}
        )
        with run.step("b"):
            assert request_metadata()["kvflow"]["version"] == 3
            assert request_metadata()["kvflow_steps"] == {"a": None, "b": 0, "c": 1}
        assert run.flush()
        assert run.close()


def test_importing_the_sdk_imports_the_base_install_only() -> None:
    code = (
        "import sys, kvflow.agent_sdk; "
        "print(sorted({m.split('.')[0] for m in sys.modules} & set(sys.argv[1:])))"
    )
    others = ["openai", "fastapi", "starlette", "uvicorn", "networkx", "sglang", "torch", "httpx"]
    done = subprocess.run(
        [sys.executable, "-c", code, *others], capture_output=True, text=True, check=True
    )
    assert done.stdout == "[]\n"
