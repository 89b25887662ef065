"""Which agent a call is of, from whatever dialect it speaks."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvflow.protocol import StepEvent
from kvflow.server.front_door.account import Account
from kvflow.server.front_door.call_hints import CallHints, read_hints
from kvflow.server.front_door.sessions import SessionTree

OURS = {"custom_params": {"kvflow": {"workflow_id": "w1", "agent_id": "a1"}}}
HEADERS = {"x-kvflow-workflow-id": "w2", "x-kvflow-agent-id": "a2"}
TOP = {"agent_hints": {"workflow_id": "w3", "agent_id": "a3"}}
NVEXT = {"nvext": {"agent_hints": {"workflow_id": "w4", "agent_id": "a4"}}}
SESSION = {"x-dynamo-session-id": "s5"}


def read(
    headers: dict[str, str] | None = None, body: Any = None, sessions: SessionTree | None = None
) -> tuple[CallHints, Account]:
    account = Account()
    hints = read_hints(headers or {}, body, "", sessions or SessionTree(), account)
    return hints, account


@pytest.mark.parametrize(
    ("headers", "body", "who", "source"),
    [
        ({}, OURS, ("w1", "a1"), "custom_params.kvflow"),
        (HEADERS, {}, ("w2", "a2"), "headers"),
        ({}, TOP, ("w3", "a3"), "agent_hints"),
        ({}, NVEXT, ("w4", "a4"), "nvext.agent_hints"),
        (SESSION, {}, ("s5", "s5"), "session headers"),
        # The first that names it decides.
        (HEADERS | SESSION, OURS | TOP | NVEXT, ("w1", "a1"), "custom_params.kvflow"),
        (HEADERS | SESSION, TOP | NVEXT, ("w2", "a2"), "headers"),
        (SESSION, TOP | NVEXT, ("w3", "a3"), "agent_hints"),
        (SESSION, NVEXT, ("w4", "a4"), "nvext.agent_hints"),
    ],
)
def test_identity(
    headers: dict[str, str], body: dict[str, Any], who: tuple[str, str], source: str
) -> None:
    hints, account = read(headers, body)

    assert (hints.workflow_id, hints.agent_id) == who
    assert account.used["workflow_id"] == account.used["agent_id"] == source
    assert not account.ignored


def test_a_workflow_named_in_one_way_and_its_agent_in_another() -> None:
    hints, account = read(SESSION, {"agent_hints": {"workflow_id": "w"}})

    assert (hints.workflow_id, hints.agent_id) == ("w", "s5")
    assert account.used == {"workflow_id": "agent_hints", "agent_id": "session headers"}


def test_half_an_identity_is_none() -> None:
    hints, account = read({}, {"agent_hints": {"agent_id": "a"}})

    assert hints.agent_id is None
    assert account.ignored == {"agent_id": "needs workflow_id beside it"}
    assert not account.used


@pytest.mark.parametrize("value", ["", " a", "a b", "x" * 257, "ä", 7, None, ["a"], {"a": 1}, True])
def test_a_name_that_is_none(value: object) -> None:
    hints, account = read({}, {"agent_hints": {"workflow_id": "w", "agent_id": value}})

    assert hints.agent_id is None
    assert hints.workflow_id is None
    assert ("agent_hints.agent_id" in account.ignored) == (value is not None)


def test_a_bad_name_gives_way_to_a_good_one() -> None:
    hints, account = read(HEADERS, {"custom_params": {"kvflow": {"agent_id": "a b"}}})

    assert hints.agent_id == "a2"
    assert "custom_params.kvflow.agent_id" in account.ignored


def test_sessions_form_workflows() -> None:
    sessions = SessionTree()

    def place(session: str, parent: str | None = None) -> tuple[str | None, str | None]:
        headers = {"x-dynamo-session-id": session}
        if parent is not None:
            headers["x-dynamo-parent-session-id"] = parent
        hints, _ = read(headers, {}, sessions)
        return hints.workflow_id, hints.agent_id

    assert place("root") == ("root", "root")
    assert place("child", "root") == ("root", "child")
    assert place("grandchild", "child") == ("root", "grandchild")
    assert place("child") == ("root", "child")
    assert place("other") == ("other", "other")
    assert sessions.root("", "grandchild") == "root"
    assert sessions.root("another client", "grandchild") is None


def test_the_tree_is_bounded() -> None:
    sessions = SessionTree(max_sessions=2)
    sessions.place("", "a", "root")
    sessions.place("", "b", "a")
    sessions.place("", "c", "b")

    assert sessions.root("", "a") is None
    assert sessions.root("", "c") == "root"


@pytest.mark.parametrize(
    ("given", "priority"), [(5, 5), (-3, -3), (2**31, None), (1.5, None), ("5", None), (True, None)]
)
def test_priority(given: object, priority: int | None) -> None:
    hints, account = read({}, {"nvext": {"agent_hints": {"priority": given}}})

    assert hints.priority == priority
    assert ("nvext.agent_hints.priority" in account.ignored) == (priority is None)


def test_the_priority_header_goes_first() -> None:
    body = {"nvext": {"agent_hints": {"priority": 1}}}
    assert read({"x-dynamo-request-priority": "9"}, body)[0].priority == 9
    hints, account = read({"x-dynamo-request-priority": "high"}, body)
    assert hints.priority == 1
    assert "headers.priority" in account.ignored


def test_times() -> None:
    given = {"cache_ttl_ms": 1500, "expected_tool_duration_ms": 250}
    hints, _ = read({}, {"agent_hints": given})
    assert (hints.retain_s, hints.tool_s) == (1.5, 0.25)
    hints, account = read({}, {"agent_hints": {"cache_ttl_ms": -1, "osl": 100, "colour": "red"}})
    assert hints.retain_s is None
    assert set(account.ignored) == {
        "agent_hints.cache_ttl_ms",
        "agent_hints.osl",
        "agent_hints.colour",
    }


def test_who_reports_the_steps() -> None:
    kvflow = {"workflow_id": "w", "agent_id": "a"}
    assert not read({}, {"custom_params": {"kvflow": kvflow}})[0].steps_reported
    reported = {"custom_params": {"kvflow": {**kvflow, "steps_reported": True}}}
    assert read({}, reported)[0].steps_reported
    in_band = {"custom_params": {"kvflow": kvflow, "kvflow_steps": {"a": 1}}}
    assert read({}, in_band)[0].in_band


@pytest.mark.parametrize(("text", "final"), [("true", True), ("True", True), ("1", False)])
def test_the_last_call_of_a_session(text: str, final: bool) -> None:
    hints, _ = read(SESSION | {"x-dynamo-session-final": text}, {})
    assert hints.session_final is final


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
    ),
    max_leaves=8,
)
hint_fields = st.sampled_from(
    [
        *("workflow_id", "agent_id", "client_id", "step_id", "priority", "cache_ttl_ms", "osl"),
        *("fixed_prefix_tokens", "expected_tool_duration_ms", "steps_reported", "x"),
    ]
)
hint_objects = st.dictionaries(hint_fields, json_values | st.just("name"), max_size=6) | json_values
bodies = st.fixed_dictionaries(
    {},
    optional={
        "agent_hints": hint_objects,
        "nvext": st.fixed_dictionaries({}, optional={"agent_hints": hint_objects}) | json_values,
        "custom_params": st.fixed_dictionaries({}, optional={"kvflow": hint_objects}) | json_values,
        "kv_hints": json_values,
    },
)
header_values = st.dictionaries(
    st.sampled_from(
        [
            *("x-kvflow-workflow-id", "x-kvflow-agent-id", "x-dynamo-session-id"),
            *("x-dynamo-parent-session-id", "x-dynamo-session-final", "x-dynamo-request-priority"),
        ]
    ),
    st.text(max_size=20) | st.just("name"),
)


@given(headers=header_values, body=bodies)
def test_whatever_is_sent_is_understood_or_ignored(
    headers: dict[str, str], body: dict[str, Any]
) -> None:
    hints, account = read(headers, body)

    assert (hints.workflow_id is None) == (hints.agent_id is None)
    if hints.agent_id is not None:
        # What is taken can be reported and sent on.
        StepEvent(type="step_started", agent_id=hints.agent_id, step_id=hints.step_id)
    told = json.loads(account.header())
    assert len(account.header()) <= 2048
    assert set(told.get("used", {})) <= set(CallHints.__dataclass_fields__)
    assert not told.get("used", {}).keys() & told.get("ignored", {}).keys()
