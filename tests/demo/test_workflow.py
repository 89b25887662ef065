from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from typing import Any

import pytest

from kvflow.demo.calls import connect
from kvflow.demo.team import REQUESTS, TEAM
from kvflow.demo.workflow import CallRecord, make_agents, run_rounds, team_workflow
from tests.demo.wire import ChatWire

pytest.importorskip("openai")


@pytest.fixture
def client(wire: ChatWire) -> Iterator[Any]:
    with closing(connect(wire.url)) as connected:
        yield connected


def test_agents_take_turns_and_each_round_has_a_request(wire: ChatWire, client: Any) -> None:
    seen: list[CallRecord] = []
    records = run_rounds(make_agents(client, None), 2, seen.append)
    assert records == seen
    assert [record.agent_id for record in records] == [role.agent_id for role in TEAM] * 2
    assert [record.round for record in records] == [1] * 10 + [2] * 10
    for position, body in enumerate(wire.bodies):
        system, user = body["messages"]
        assert system["content"] == TEAM[position % 10].system_prompt
        assert REQUESTS[position // 10] in user["content"]


def test_an_answer_is_handed_to_the_next_agent_within_the_round(
    wire: ChatWire, client: Any
) -> None:
    run_rounds(make_agents(client, None), 2)
    questions = [body["messages"][1]["content"] for body in wire.bodies]
    for position, question in enumerate(questions):
        if position % 10 == 0:
            assert "said" not in question
        else:
            title = TEAM[position % 10 - 1].title
            assert f"The {title} said: answer {position}\n" in question


def test_calls_of_a_workflow_say_whose_they_are_and_what_comes_next(
    wire: ChatWire, client: Any
) -> None:
    workflow = team_workflow("off", wire.url)
    agents = make_agents(client, workflow)
    with workflow.run() as run:
        run_rounds(agents, 2)
    stamps = [body["custom_params"] for body in wire.bodies]
    assert [stamp["kvflow"]["agent_id"] for stamp in stamps] == [r.agent_id for r in TEAM] * 2
    assert {stamp["kvflow"]["workflow_id"] for stamp in stamps} == {run.workflow_id}
    for position, stamp in enumerate(stamps):
        expected = {role.agent_id: (index - position) % 10 for index, role in enumerate(TEAM)}
        assert stamp["kvflow_steps"] == expected


def test_calls_without_a_workflow_carry_nothing(wire: ChatWire, client: Any) -> None:
    # Even after the SDK has hooked openai.
    team_workflow("off", wire.url)
    run_rounds(make_agents(client, None), 2)
    assert all("custom_params" not in body for body in wire.bodies)


def test_requests_are_the_same_with_and_without_a_workflow(wire: ChatWire, client: Any) -> None:
    run_rounds(make_agents(client, None), 2)
    plain = [dict(body) for body in wire.bodies]
    wire.bodies.clear()
    workflow = team_workflow("off", wire.url)
    agents = make_agents(client, workflow)
    with workflow.run():
        run_rounds(agents, 2)
    for body in wire.bodies:
        del body["custom_params"]
    assert wire.bodies == plain
