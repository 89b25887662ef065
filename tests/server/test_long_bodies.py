"""Long bodies: the same answers as for short ones, and others are served meanwhile."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import httpx2
import pytest
from pydantic import TypeAdapter, ValidationError

from kvflow.protocol import StepEvent
from kvflow.server import Service, ServiceSettings, build_service
from kvflow.server.bodies import MAX_EVENTS
from kvflow.server.long_bodies import checked_events, parsed_json
from kvflow.server.turns import AT_ONCE, long_work
from tests.server.workflow_bodies import cycle, finished, started

LENGTH = 5 * AT_ONCE + 7
PIECE = 32 * 1024


@pytest.fixture
def service() -> Service:
    return build_service(ServiceSettings(sweep_interval_s=3600))


@pytest.fixture
async def http(service: Service) -> AsyncIterator[httpx2.AsyncClient]:
    transport = httpx2.ASGITransport(app=service.app)
    async with httpx2.AsyncClient(transport=transport, base_url="http://service") as client:
        await client.post("/v1/workflows", json=cycle())
        yield client


def rounds(length: int, name: str = "s") -> list[dict[str, Any]]:
    """Runs of ``a0`` alone: started, finished, started ..."""
    kinds = (started, finished)
    return [kinds[number % 2]("a0", f"{name}{number // 2}") for number in range(length)]


@asynccontextmanager
async def counted_turns() -> AsyncIterator[list[int]]:
    """How many turns of the event loop others had; to be read at the end."""
    turns = [0]

    async def count() -> None:
        while True:
            turns[0] += 1
            await asyncio.sleep(0)

    counting = asyncio.create_task(count())
    try:
        yield turns
    finally:
        counting.cancel()


async def test_a_long_list_is_applied(http: httpx2.AsyncClient) -> None:
    answer = await http.post("/v1/workflows/w/events", json=rounds(LENGTH) + rounds(3))

    assert answer.status_code == 200
    assert answer.json() | {"steps_to_execution": None} == {
        "version": LENGTH,
        "applied": LENGTH,
        "duplicates": 3,
        "mispredictions": LENGTH // 2,  # all starts but the first
        "steps_to_execution": None,
    }


@pytest.mark.parametrize("index", [0, AT_ONCE - 1, AT_ONCE, LENGTH - 1])
@pytest.mark.parametrize(
    ("wrong", "field", "problem"),
    [
        ({"type": "step_done"}, ".type", "Input should be 'step_started' or 'step_finished'"),
        ({"agent": "a0"}, ".agent", "is not a field of this object; check its spelling"),
        (
            {"type": "step_started", "prompt_tokens": 3},
            "",
            "Value error, prompt_tokens goes with step_finished, as it is not known before",
        ),
        (None, "", "must be a JSON object"),
    ],
)
async def test_a_wrong_event_is_named_wherever_it_is(
    http: httpx2.AsyncClient,
    index: int,
    wrong: dict[str, Any] | None,
    field: str,
    problem: str,
) -> None:
    events: list[Any] = rounds(LENGTH)
    events[index] = wrong and events[index] | wrong

    answer = await http.post("/v1/workflows/w/events", json=events)

    assert answer.status_code == 422
    (error,) = answer.json()["errors"]
    assert error["field"] == f"[{index}]{field}"
    assert error["problem"].startswith(problem)
    assert (await http.get("/v1/workflows/w")).json()["version"] == 0


async def test_wrong_events_of_several_pieces_are_counted_in_order(
    http: httpx2.AsyncClient,
) -> None:
    events: list[Any] = rounds(LENGTH)
    places = [3, AT_ONCE + 1, 4 * AT_ONCE]
    for place in places:
        events[place] = {"agent_id": "a0"}

    answer = await http.post("/v1/workflows/w/events", json=events)

    assert answer.json()["detail"] == "3 values are wrong: [3].type: is required"
    assert [error["field"] for error in answer.json()["errors"]] == [
        f"[{place}].type" for place in places
    ]


async def test_too_long_a_list_is_refused_as_one(http: httpx2.AsyncClient) -> None:
    events: list[Any] = rounds(MAX_EVENTS + 1)
    events[0] = {}

    answer = await http.post("/v1/workflows/w/events", json=events)

    assert answer.status_code == 422
    assert [error["problem"] for error in answer.json()["errors"]] == [
        f"must have at most {MAX_EVENTS} items"
    ]


@pytest.mark.parametrize("index", [AT_ONCE - 1, AT_ONCE, LENGTH - 1])
async def test_if_one_event_does_not_fit_none_is_applied(
    http: httpx2.AsyncClient, index: int
) -> None:
    events = rounds(LENGTH)
    events[index] = finished("a1")
    before = (await http.get("/v1/workflows/w")).json()

    answer = await http.post("/v1/workflows/w/events", json=events)

    assert (answer.status_code, answer.json()["event_index"]) == (409, index)
    after = (await http.get("/v1/workflows/w")).json()
    assert after | {"expires_in_s": 0} == before | {"expires_in_s": 0}
    assert "expected_s_to_execution" not in (await http.get("/v1/workflows/w/steps")).json()


async def test_a_wrong_edge_of_a_large_graph_is_named(http: httpx2.AsyncClient) -> None:
    body = cycle("large", agents=3 * AT_ONCE)
    body["edges"][2 * AT_ONCE]["probability"] = 2
    body["agents"][AT_ONCE]["agent_id"] = "-"
    body["ttl_s"] = -1

    answer = await http.post("/v1/workflows", json=body)

    assert [error["field"] for error in answer.json()["errors"]] == [
        "ttl_s",
        f"agents[{AT_ONCE}].agent_id",
        f"edges[{2 * AT_ONCE}].probability",
    ]


async def test_lists_for_one_workflow_are_applied_one_after_the_other(
    http: httpx2.AsyncClient, service: Service
) -> None:
    names = ("x", "y", "z")
    with service.bus.subscribe({"step.started"}) as listener:
        answers = await asyncio.gather(
            *(
                http.post("/v1/workflows/w/events", json=rounds(2 * AT_ONCE + 2, name))
                for name in names
            )
        )
        told = [event.data["step_id"][0] for event in await listener.take(10 * AT_ONCE)]

    assert [answer.status_code for answer in answers] == [200] * 3
    turns = [name for name, before in zip(told, ["", *told[:-1]], strict=True) if name != before]
    assert sorted(turns) == list(names)
    assert len(told) == len(names) * (AT_ONCE + 1)


async def test_others_get_their_turn_beside_a_long_list(http: httpx2.AsyncClient) -> None:
    await http.post("/v1/workflows", json=cycle("other"))
    async with counted_turns() as turns:
        answer = await http.post("/v1/workflows/w/events", json=rounds(MAX_EVENTS))

    assert answer.status_code == 200
    # Checked, applied, and their times taken; parsed in pieces besides.
    assert turns[0] > 3 * MAX_EVENTS // AT_ONCE


async def test_others_get_their_turn_beside_a_large_graph(http: httpx2.AsyncClient) -> None:
    async with counted_turns() as turns:
        answer = await http.post("/v1/workflows", json=cycle("large", agents=1900, join="all"))

    assert answer.status_code == 422  # of a field that there is not, as the last thing
    assert turns[0] > 2 * (1900 // AT_ONCE)


async def test_an_event_beside_long_lists_is_answered_before_them(
    http: httpx2.AsyncClient,
) -> None:
    await http.post("/v1/workflows", json=cycle("other"))
    order = []

    async def post(workflow_id: str, events: list[dict[str, Any]]) -> None:
        answer = await http.post(f"/v1/workflows/{workflow_id}/events", json=events)
        assert answer.status_code == 200
        order.append(workflow_id)

    await asyncio.gather(post("w", rounds(MAX_EVENTS)), post("other", rounds(1)))

    assert order == ["other", "w"]


OBJECTS = [{"a": f"}}, {number}", "b": [{"c": 1}, {"d": "é"}]} for number in range(4000)]


@pytest.mark.parametrize(
    "body",
    [
        json.dumps(OBJECTS).encode(),
        json.dumps(OBJECTS, indent=2, ensure_ascii=False).encode(),
        b" \r\n" + json.dumps(OBJECTS, separators=(",", ":")).encode() + b"\n\t",
        json.dumps(OBJECTS).encode("utf-16"),
        json.dumps({"agents": OBJECTS}).encode(),
        json.dumps([[one, one] for one in OBJECTS]).encode(),
        json.dumps(["}, {" * 20_000, *OBJECTS]).encode(),
        json.dumps(list(range(20_000))).encode(),
        json.dumps([*OBJECTS, {"odd": "\ud800"}]).encode(),
        b'[{"a": NaN}, ' + json.dumps(OBJECTS).encode()[1:],
    ],
)
async def test_a_long_body_is_parsed_as_json_loads_does(body: bytes) -> None:
    assert len(body) > 2 * PIECE
    assert repr(await parsed_json(body)) == repr(json.loads(body))


def _broken() -> dict[str, bytes]:
    whole = json.dumps(OBJECTS).encode()
    cut = whole.index(b"}, {", 2 * PIECE)
    return {
        "no end": whole[:-1],
        "two ends": whole + b"]",
        "a comma too many at the end": whole[:-1] + b",]",
        "a comma too many after a piece": whole[: whole.index(b"},", PIECE + 1) + 1] + b",]",
        "a comma too many inside": whole[:cut] + b"}, , {" + whole[cut + 4 :],
        "a comma missing": whole[:cut] + b"} {" + whole[cut + 4 :],
        "not UTF-8": whole[:cut] + b"\xff" + whole[cut:],
        "a control character": whole.replace(b"}, 3000", b"}, \n", 1),
        "too deep": b"[" * PIECE * 3,
        "a giant number": b'[{"a":' + b"9" * 2 * PIECE + b"}, 1]",
    }


@pytest.mark.parametrize("what", _broken())
async def test_a_long_body_that_is_no_json_is_refused_in_the_words_of_json_loads(what: str) -> None:
    body = _broken()[what]
    with pytest.raises((ValueError, RecursionError)) as expected:
        json.loads(body)

    with pytest.raises((ValueError, RecursionError)) as found:
        await parsed_json(body)

    assert (type(found.value), str(found.value)) == (type(expected.value), str(expected.value))


async def test_what_is_wrong_with_a_checked_list_is_what_was_wrong_before() -> None:
    events: list[Any] = rounds(LENGTH)
    events[7], events[-1] = {"agent_id": 3}, "event"
    adapter = TypeAdapter(list[StepEvent])
    with pytest.raises(ValidationError) as expected:
        adapter.validate_python(list(events))

    await checked_events(events)

    assert isinstance(events[AT_ONCE], StepEvent)
    with pytest.raises(ValidationError) as found:
        adapter.validate_python(events)
    assert found.value.errors() == expected.value.errors()


def test_long_work_leaves_the_interpreter_as_it_was() -> None:
    usual_s = sys.getswitchinterval()
    with long_work():
        with long_work():
            assert sys.getswitchinterval() < usual_s
        assert sys.getswitchinterval() < usual_s
    assert sys.getswitchinterval() == usual_s

    with suppress(RuntimeError), long_work():
        raise RuntimeError
    assert sys.getswitchinterval() == usual_s
