"""The real ``openai`` package against a local server that keeps what it is sent.

Runs here with the installed openai, and again with openai 3 by ``test_openai3.py``.
"""

from __future__ import annotations

import asyncio
import importlib
import json
import logging
import os
import subprocess
import sys
import threading
import types
from collections.abc import AsyncIterator, Iterator
from typing import Any

import openai
import pytest
from pydantic import BaseModel

from kvflow.agent_sdk import Workflow, current_step, openai_hook, request_metadata
from kvflow.agent_sdk.openai_hook import hook_openai
from kvflow.agent_sdk.reporter import Reporter
from kvflow.agent_sdk.run import WorkflowRun
from tests.agent_sdk.recording_engine import WORDS, RecordingEngine, recording_engine

MAJOR = int(openai.__version__.split(".")[0])
TEXT = "".join(WORDS)
CHAT: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}


@pytest.fixture
def engine() -> Iterator[RecordingEngine]:
    with recording_engine() as engine:
        yield engine


@pytest.fixture
def client(engine: RecordingEngine) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=engine.base_url, api_key="k", max_retries=0) as client:
        yield client


@pytest.fixture
async def async_client(engine: RecordingEngine) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(base_url=engine.base_url, api_key="k", max_retries=0) as client:
        yield client


@pytest.fixture
def run(reporter: Reporter) -> Iterator[WorkflowRun]:
    agents = ["a", {"agent_id": "b", "fixed_prefix_tokens": 640}]
    with Workflow(agents=agents, entry=["a", "b"], reporter=reporter).run("w1") as run:
        yield run


A = {
    "kvflow": {
        "workflow_id": "w1",
        "agent_id": "a",
        "client_id": "default",
        "steps_reported": True,
    }
}


def test_the_version_meant() -> None:
    assert str(MAJOR) == os.environ.get("KVFLOW_TEST_OPENAI_MAJOR", str(MAJOR))


class TestSync:
    def test_chat(self, client: openai.OpenAI, engine: RecordingEngine, run: WorkflowRun) -> None:
        with run.step("a"):
            answer = client.chat.completions.create(**CHAT, temperature=0)
        assert answer.choices[0].message.content == TEXT
        assert engine.bodies == [{**CHAT, "temperature": 0, "custom_params": A}]

    def test_streamed_chat(
        self, client: openai.OpenAI, engine: RecordingEngine, run: WorkflowRun
    ) -> None:
        with run.step("b"):
            stream = client.chat.completions.create(**CHAT, stream=True)
            words = [chunk.choices[0].delta.content for chunk in stream]
        assert words == WORDS
        assert engine.bodies == [
            {
                **CHAT,
                "stream": True,
                "custom_params": {
                    "kvflow": {
                        "workflow_id": "w1",
                        "agent_id": "b",
                        "client_id": "default",
                        "steps_reported": True,
                        "fixed_prefix_tokens": 640,
                    }
                },
            }
        ]

    def test_completions(
        self, client: openai.OpenAI, engine: RecordingEngine, run: WorkflowRun
    ) -> None:
        with run.step("a"):
            whole = client.completions.create(model="m", prompt="hi")
            stream = client.completions.create(model="m", prompt="hi", stream=True)
            assert [chunk.choices[0].text for chunk in stream] == WORDS
        assert whole.choices[0].text == TEXT
        assert [body["custom_params"] for body in engine.bodies] == [A, A]

    def test_other_ways_to_chat(
        self, client: openai.OpenAI, engine: RecordingEngine, run: WorkflowRun
    ) -> None:
        class Free(BaseModel):
            pass

        with run.step("a"):
            client.with_options(timeout=7).chat.completions.create(**CHAT)
            client.copy().chat.completions.create(**CHAT)
            raw = client.chat.completions.with_raw_response.create(**CHAT)
            assert raw.parse().choices[0].message.content == TEXT
            with client.chat.completions.with_streaming_response.create(**CHAT) as response:
                assert json.loads(response.read())["model"] == "m"
            with client.chat.completions.stream(**CHAT) as stream:
                assert stream.get_final_completion().choices[0].message.content == TEXT
            with pytest.raises(Exception, match="JSON"):  # the answer is text, of course
                client.chat.completions.parse(**CHAT, response_format=Free)
            client.post("/chat/completions", body=CHAT, cast_to=object)
            client.post(engine.base_url + "/chat/completions", body=CHAT, cast_to=object)
        assert [body.get("custom_params") for body in engine.bodies] == [A] * 8

    def test_subclasses(self, engine: RecordingEngine, run: WorkflowRun) -> None:
        class Mine(openai.OpenAI):
            def _prepare_options(self, options: Any) -> Any:
                return options

        with (
            Mine(base_url=engine.base_url, api_key="k") as client,
            run.step("a"),
        ):
            client.chat.completions.create(**CHAT)
        assert engine.bodies == [{**CHAT, "custom_params": A}]

    def test_retries_carry_it_too(self, engine: RecordingEngine, run: WorkflowRun) -> None:
        engine.fail_next = 1
        with (
            openai.OpenAI(base_url=engine.base_url, api_key="k", max_retries=1) as client,
            run.step("a"),
        ):
            client.chat.completions.create(**CHAT)
        assert [body["custom_params"] for body in engine.bodies] == [A, A]

    def test_outside_a_step_nothing_changes(
        self, client: openai.OpenAI, engine: RecordingEngine, run: WorkflowRun
    ) -> None:
        client.chat.completions.create(**CHAT)
        with run.step("a"):
            pass
        client.chat.completions.create(**CHAT)
        assert engine.bodies == [CHAT, CHAT]

    def test_decorated_agents(
        self, client: openai.OpenAI, engine: RecordingEngine, workflow: Workflow
    ) -> None:
        @workflow.agent("writer")
        def writer() -> Iterator[str]:
            for chunk in client.chat.completions.create(**CHAT, stream=True):
                yield chunk.choices[0].delta.content
            client.chat.completions.create(**CHAT)

        with workflow.run():
            words = []
            for word in writer():
                words.append(word)
                assert current_step() is None
        assert words == WORDS
        agents = [body["custom_params"]["kvflow"]["agent_id"] for body in engine.bodies]
        assert agents == ["writer", "writer"]


class TestAsync:
    async def test_chat_and_streams(
        self, async_client: openai.AsyncOpenAI, engine: RecordingEngine, run: WorkflowRun
    ) -> None:
        with run.step("a"):
            answer = await async_client.chat.completions.create(**CHAT)
            stream = await async_client.chat.completions.create(**CHAT, stream=True)
            assert [chunk.choices[0].delta.content async for chunk in stream] == WORDS
            text = await async_client.completions.create(model="m", prompt="hi", stream=True)
            assert [chunk.choices[0].text async for chunk in text] == WORDS
            await async_client.with_options(timeout=7).chat.completions.create(**CHAT)
        assert answer.choices[0].message.content == TEXT
        assert [body["custom_params"] for body in engine.bodies] == [A] * 4

    async def test_parallel_agents_stay_apart(
        self, async_client: openai.AsyncOpenAI, engine: RecordingEngine, workflow: Workflow
    ) -> None:
        async def ask(agent_id: str, n: int) -> None:
            for _ in range(2):
                messages = [{"role": "user", "content": f"{agent_id} {n}"}]
                await async_client.chat.completions.create(model="m", messages=messages)
                await asyncio.sleep(0)

        agents = {name: workflow.agent(name)(ask) for name in ("x", "y")}

        async def one_run(n: int) -> None:
            async with workflow.run(f"run-{n}"):
                await asyncio.gather(*(agents[name](name, n) for name in "xyxy"))

        await asyncio.gather(*(one_run(n) for n in range(3)))
        assert len(engine.bodies) == 24
        for body in engine.bodies:
            kvflow = body["custom_params"]["kvflow"]
            agent_id, n = body["messages"][0]["content"].split()
            assert (kvflow["agent_id"], kvflow["workflow_id"]) == (agent_id, f"run-{n}")


class TestWhatIsLeftAlone:
    def test_the_users_own_custom_params(
        self, client: openai.OpenAI, engine: RecordingEngine, run: WorkflowRun
    ) -> None:
        mine = {"kvflow": {"workflow_id": "mine", "agent_id": "mine"}}
        given: list[Any] = [{"thinking_budget": 5}, mine, None, [1]]
        with run.step("a"):
            for value in given:
                extra = {"custom_params": value, "top_k": 4}
                client.chat.completions.create(**CHAT, extra_body=extra)
                assert extra == {"custom_params": value, "top_k": 4}
        sent = [body["custom_params"] for body in engine.bodies]
        assert sent == [{"thinking_budget": 5, **A}, mine, A, [1]]
        assert {body["top_k"] for body in engine.bodies} == {4}

    def test_what_the_user_passes_by_hand(
        self, client: openai.OpenAI, engine: RecordingEngine, run: WorkflowRun
    ) -> None:
        with run.step("a"):
            metadata = request_metadata()
            with run.step("b"):
                client.chat.completions.create(**CHAT, extra_body={"custom_params": metadata})
        assert engine.bodies == [{**CHAT, "custom_params": A}]

    def test_other_routes(
        self, client: openai.OpenAI, engine: RecordingEngine, run: WorkflowRun
    ) -> None:
        with run.step("a"):
            client.embeddings.create(model="m", input="x", encoding_format="float")
            client.responses.create(model="m", input="x")
            raw: dict[str, Any] = {"content" if MAJOR >= 3 else "body": b'{"raw": 1}'}
            client.post("/chat/completions", **raw, cast_to=object)
        assert [path for path, _ in engine.requests] == [
            "/v1/embeddings", "/v1/responses", "/v1/chat/completions",
        ]  # fmt: skip
        assert not any("custom_params" in body for body in engine.bodies)

    def test_the_callers_options(self, client: openai.OpenAI, run: WorkflowRun) -> None:
        options = importlib.import_module("openai._models").FinalRequestOptions(
            method="post", url="/chat/completions", json_data=CHAT, extra_json={"top_k": 1}
        )
        with run.step("a"):
            request = client._build_request(options)
        assert json.loads(request.read())["custom_params"] == A
        assert options.extra_json == {"top_k": 1}
        assert "custom_params" not in CHAT

    @pytest.mark.parametrize("base_url", [None, "https://api.groq.com/openai/v1"])
    def test_hosted_apis(self, base_url: str | None, run: WorkflowRun) -> None:
        bodies: list[Any] = []
        with (
            openai.OpenAI(
                base_url=base_url, api_key="k", http_client=http_client(bodies)
            ) as client,
            run.step("a"),
        ):
            client.chat.completions.create(**CHAT)
        assert bodies == [CHAT]

    def test_azure(self, engine: RecordingEngine, reporter: Reporter) -> None:
        """Azure's gateways have any address; its clients are for Azure unless told otherwise."""
        address = engine.base_url.removesuffix("/v1")

        def ask() -> Any:
            with openai.AzureOpenAI(
                azure_endpoint=address, api_key="k", api_version="2024-10-21"
            ) as client:
                client.chat.completions.create(**CHAT)
            return engine.requests[-1]

        with Workflow(agents=["a"], reporter=reporter).step("a"):
            assert ask() == (
                "/openai/deployments/m/chat/completions?api-version=2024-10-21", CHAT,
            )  # fmt: skip
        with Workflow(agents=["a"], reporter=reporter, engine_urls=[address]).step("a"):
            path, body = ask()
        assert path == "/openai/deployments/m/chat/completions?api-version=2024-10-21"
        assert body["custom_params"]["kvflow"]["agent_id"] == "a"

    def test_engines_that_are_not_listed(
        self, client: openai.OpenAI, engine: RecordingEngine, reporter: Reporter,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:  # fmt: skip
        for listed in ("http://127.0.0.1:1", engine.base_url):
            monkeypatch.setenv("KVFLOW_ENGINE_URLS", listed)
            with Workflow(agents=["a"], reporter=reporter).step("a"):
                client.chat.completions.create(**CHAT)
        assert ["custom_params" in body for body in engine.bodies] == [False, True]


class TestTheHook:
    def test_is_put_on_once(self) -> None:
        barrier = threading.Barrier(8)

        def hook() -> None:
            barrier.wait(30)
            hook_openai()

        threads = [threading.Thread(target=hook) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        build = importlib.import_module("openai._base_client").BaseClient._build_request
        assert build._kvflow_hooked
        assert not hasattr(build.__wrapped__, "_kvflow_hooked")

    def test_an_openai_without_the_hook_is_one_warning(
        self, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        monkeypatch.setattr(openai_hook, "_warned", set())
        future = types.ModuleType("openai._base_client")
        monkeypatch.setitem(sys.modules, "openai._base_client", future)
        for _ in range(2):
            hook_openai()
        (record,) = caplog.records
        assert (record.name, record.levelno) == ("kvflow", logging.WARNING)
        assert "extra_body" in record.getMessage()

    def test_a_failure_in_it_is_one_warning_and_the_request_goes_out(
        self, client: openai.OpenAI, engine: RecordingEngine, run: WorkflowRun,
        monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture,
    ) -> None:  # fmt: skip
        monkeypatch.setattr(openai_hook, "_warned", set())
        monkeypatch.setattr(openai_hook, "urlsplit", None)
        with run.step("a"):
            for _ in range(2):
                client.chat.completions.create(**CHAT)
        assert engine.bodies == [CHAT, CHAT]
        assert [r.levelname for r in caplog.records if r.name == "kvflow"] == ["WARNING"]

    @pytest.mark.parametrize("imported", ["before", "between", "inside"])
    def test_openai_may_be_imported_at_any_time(
        self, imported: str, engine: RecordingEngine
    ) -> None:
        done = subprocess.run(
            [sys.executable, "-W", "error", "-c", SCRIPT, imported, engine.base_url],
            capture_output=True,
            text=True,
            timeout=100,
            check=False,
        )
        assert (done.returncode, done.stderr) == (0, "")
        assert [body["custom_params"]["kvflow"]["agent_id"] for body in engine.bodies] == ["a"]


SCRIPT = """
import sys
when, base_url = sys.argv[1:]
if when == "before":
    import openai
from kvflow.agent_sdk import Workflow
workflow = Workflow(agents=["a"], service_url="off")
assert ("openai" in sys.modules) == (when == "before")
if when == "between":
    import openai
with workflow.step("a"):
    from openai import OpenAI
    with OpenAI(base_url=base_url, api_key="k") as client:
        client.chat.completions.create(model="m", messages=[])
"""


def http_client(bodies: list[Any]) -> Any:
    """An HTTP client that answers by itself and keeps the bodies."""
    http = importlib.import_module("httpx2" if MAJOR >= 3 else "httpx")

    def answer(request: Any) -> Any:
        bodies.append(json.loads(request.content))
        return http.Response(200, json={"id": "1", "object": "chat.completion", "choices": []})

    return http.Client(transport=http.MockTransport(answer))
