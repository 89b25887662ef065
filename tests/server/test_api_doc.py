"""The examples in docs/api.md are true."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx2
import pytest

from kvflow.protocol import CUSTOM_PARAMS_KEY, STEPS_PARAMS_KEY, RequestMetadata
from kvflow.server import ServiceSettings
from tests.server.running import PATIENCE_S, StreamReader, running_service

DOC = (Path(__file__).parents[2] / "docs" / "api.md").read_text()
ADDRESS = "http://127.0.0.1:8100"
VOLATILE = {"expires_in_s", "connected_for_s"}


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", DOC, re.MULTILINE | re.DOTALL)


def split_command(block: str) -> tuple[list[str], str]:
    """``$ curl ...`` up to the end of its last quotation, and what it prints."""
    assert block.startswith("$ ")
    lines = block.removeprefix("$ ").splitlines(keepends=True)
    for count in range(1, len(lines) + 1):
        try:
            return shlex.split("".join(lines[:count])), "".join(lines[count:])
        except ValueError:
            continue
    raise AssertionError(block)


def request_of(command: list[str]) -> dict[str, Any]:
    assert command.pop(0) == "curl"
    request: dict[str, Any] = {"method": "GET", "headers": {}}
    words = iter(command)
    for word in words:
        match word:
            case "-s" | "-sN":
                pass
            case "-X":
                request["method"] = next(words)
            case "-H":
                name, value = next(words).split(": ")
                request["headers"][name] = value
            case "-d":
                request |= {"method": "POST", "content": next(words).encode()}
            case _:
                assert word.startswith(ADDRESS)
                request["url"] = word.removeprefix(ADDRESS)
    return request


def without_volatile(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: without_volatile(v) for k, v in value.items() if k not in VOLATILE}
    return [without_volatile(v) for v in value] if isinstance(value, list) else value


def messages(printed: str) -> Iterator[tuple[str, dict[str, Any]]]:
    for identity, event, data in re.findall(r"id: (\d+)\nevent: (\w+)\ndata: (.*)\n\n", printed):
        message = json.loads(data)
        assert message["seq"] == int(identity)
        yield event, message


def test_examples() -> None:
    examples = blocks("console")
    assert len(examples) == 8
    expected_stream: Iterator[tuple[str, dict[str, Any]]] = iter(())
    reader: StreamReader | None = None

    def check_next_message() -> None:
        event, expected = next(expected_stream)
        assert reader is not None
        message = reader.next()
        assert message is not None
        assert type(message).__name__.lower() == event
        assert message.model_dump(mode="json") == expected

    with ExitStack() as stack:
        running = stack.enter_context(running_service(ServiceSettings()))
        http = stack.enter_context(httpx2.Client(base_url=running.url, timeout=PATIENCE_S))
        for example in examples:
            command, printed = split_command(example)
            request = request_of(command)
            if "/stream" in request["url"]:
                response = stack.enter_context(http.stream(**request))
                reader = StreamReader(response)
                expected_stream = messages(printed)
                check_next_message()
                continue
            answer = http.request(**request)
            if request["method"] == "DELETE":
                assert (answer.content, printed) == (b"", "")
                check_next_message()
                continue
            assert without_volatile(answer.json()) == without_volatile(json.loads(printed))
        with pytest.raises(StopIteration):
            next(expected_stream)


def test_request_metadata() -> None:
    for block in blocks("json"):
        params = json.loads(block)["custom_params"]
        steps = params.get(STEPS_PARAMS_KEY)
        metadata = RequestMetadata.model_validate(
            params[CUSTOM_PARAMS_KEY] | {"steps_to_execution": steps}
        )
        assert (metadata.workflow_id, metadata.agent_id) == ("review-7", "tester")
    assert len(blocks("json")) == 2


def test_every_route_and_setting_is_described() -> None:
    for name in ServiceSettings.model_fields:
        assert f"`KVFLOW_{name.upper()}`" in DOC
    with running_service(ServiceSettings()) as running:
        document = httpx2.get(f"{running.url}/openapi.json").json()
    for path, operations in document["paths"].items():
        for method in operations:
            assert f"`{method.upper()} {path}`" in DOC
