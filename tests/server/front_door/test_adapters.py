"""What each kind of engine is sent."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvflow.server.front_door.account import Account
from kvflow.server.front_door.adapters import (
    EngineTraits,
    Owner,
    body_for_engine,
    parse_body,
)
from kvflow.server.front_door.call_hints import read_hints
from kvflow.server.front_door.detection import sglang_traits
from kvflow.server.front_door.priority import PriorityOrder, priority_for
from kvflow.server.front_door.sessions import SessionTree

OWNER = Owner("team", "review", "coder")
IDENTITY = {"workflow_id": "review", "agent_id": "coder"}
STAMP = {**IDENTITY, "client_id": "team"}
CHAT = "/v1/chat/completions"
PLUGIN = EngineTraits("kvflow", "none")


def sent(
    body: dict[str, Any],
    traits: EngineTraits = PLUGIN,
    *,
    path: str = CHAT,
    owner: Owner | None = OWNER,
    salt: str | None = None,
) -> tuple[dict[str, Any], Account]:
    account = Account()
    raw = json.dumps(body).encode()
    content = body_for_engine(
        raw,
        parse_body(raw),
        path=path,
        hints=read_hints({}, body, "", SessionTree(), account),
        owner=owner,
        cache_salt=salt,
        traits=traits,
        account=account,
    )
    result: dict[str, Any] = json.loads(content)
    return result, account


@pytest.mark.parametrize(
    ("order", "ours", "theirs"),
    [
        ("higher_first", 5, 5),
        ("higher_first", -5, -5),
        ("lower_first", 5, -5),
        ("lower_first", -5, 5),
        ("lower_first", 0, 0),
        ("none", 5, None),
    ],
)
def test_priority_polarity(order: PriorityOrder, ours: int, theirs: int | None) -> None:
    assert priority_for(order, ours) == theirs


@given(st.lists(st.integers(-(2**31) + 1, 2**31 - 1), min_size=2))
def test_every_engine_takes_the_same_call_first(priorities: list[int]) -> None:
    first = max(priorities)
    higher = [priority_for("higher_first", one) for one in priorities]
    lower = [priority_for("lower_first", one) for one in priorities]
    assert higher[priorities.index(first)] == max(p for p in higher if p is not None)
    assert lower[priorities.index(first)] == min(p for p in lower if p is not None)


@pytest.mark.parametrize(
    ("traits", "priority"),
    [
        (EngineTraits("sglang", "higher_first"), 7),
        (EngineTraits("kvflow", "higher_first"), 7),
        (EngineTraits("sglang", "lower_first"), -7),
        (EngineTraits("vllm", "lower_first"), -7),
        (EngineTraits("sglang", "none"), None),
        (EngineTraits("vllm", "none"), None),
        (EngineTraits("unknown", "none"), None),
    ],
)
def test_priority_as_the_engine_writes_it(traits: EngineTraits, priority: int | None) -> None:
    result, account = sent({"nvext": {"agent_hints": {"priority": 7}}}, traits, owner=None)

    assert result.get("priority") == priority
    assert ("priority" in account.ignored) == (priority is None)
    assert account.sent.get("priority") == priority


def test_the_engines_own_priority_stays() -> None:
    body = {"priority": 3, "agent_hints": {"priority": 7}}
    result, account = sent(body, EngineTraits("vllm", "lower_first"), owner=None)

    assert result == {"priority": 3}
    assert "priority" in account.ignored


def test_the_plugin_gets_the_identity() -> None:
    body = {"model": "m", "messages": [], "agent_hints": IDENTITY, "temperature": 0}
    result, account = sent(body)

    assert result == {
        "model": "m",
        "messages": [],
        "temperature": 0,
        "custom_params": {"kvflow": STAMP},
    }
    assert account.sent == {"custom_params": "kvflow"}


def test_the_users_own_custom_params_stay() -> None:
    given = {
        "mine": 1,
        "kvflow": {**IDENTITY, "version": 4, "step_id": "s", "steps_reported": True},
    }
    result, _ = sent({"custom_params": {**given, "kvflow_steps": {"coder": 0}}})

    assert result["custom_params"] == {
        "mine": 1,
        "kvflow": {**STAMP, "version": 4},
        "kvflow_steps": {"coder": 0},
    }


@pytest.mark.parametrize("kind", ["sglang", "vllm", "unknown"])
def test_others_get_no_field_they_do_not_know(kind: Any) -> None:
    traits = EngineTraits(kind, "none")
    body = {
        "model": "m",
        "agent_hints": IDENTITY,
        "nvext": {"agent_hints": {"osl": 3}},
        "kv_hints": {},
        "custom_params": {"kvflow": IDENTITY, "kvflow_steps": {"coder": 1}},
    }
    result, account = sent(body, traits)

    assert result == {"model": "m"}
    assert kind in account.ignored["identity"]
    kept, _ = sent({**body, "custom_params": {"mine": 2, "kvflow": IDENTITY}}, traits)
    assert kept == {"model": "m", "custom_params": {"mine": 2}}


def test_a_route_without_custom_params() -> None:
    result, account = sent({"input": "x", "agent_hints": IDENTITY}, path="/v1/responses")

    assert result == {"input": "x"}
    assert "custom_params" in account.ignored["identity"]


def test_the_clients_salt_goes_before_its_own() -> None:
    assert sent({"cache_salt": "theirs"}, salt="ours", owner=None)[0] == {"cache_salt": "ours"}
    assert sent({"model": "m"}, salt="ours", owner=None)[0] == {"model": "m", "cache_salt": "ours"}
    assert sent({"cache_salt": "theirs"}, owner=None)[0] == {"cache_salt": "theirs"}
    assert sent({"nvext": {"cache_salt": "d"}}, owner=None)[0] == {"cache_salt": "d"}
    assert sent({"nvext": {"cache_salt": "d"}}, salt="ours", owner=None)[0] == {
        "cache_salt": "ours"
    }


@pytest.mark.parametrize("params", ["x", 7, ["kvflow"], {"kvflow": "x"}, {"kvflow": None}])
def test_custom_params_that_make_no_sense(params: Any) -> None:
    result, _ = sent({"custom_params": params})

    if isinstance(params, dict):
        assert result["custom_params"] == {"kvflow": STAMP}
    else:
        assert result == {"custom_params": params}


@pytest.mark.parametrize(
    "raw", [b"", b"[]", b"null", b"{", b"\xff", b'"x"', b"[" * 100_000, b"1" * 5_000]
)
def test_what_is_no_object_goes_on_as_it_is(raw: bytes) -> None:
    account = Account()
    hints = read_hints({}, None, "", SessionTree(), account)
    content = body_for_engine(
        raw,
        parse_body(raw),
        path=CHAT,
        hints=hints,
        owner=OWNER,
        cache_salt=None,
        traits=PLUGIN,
        account=account,
    )

    assert content == raw
    assert "body" in account.ignored


def test_bytes_that_need_no_change_are_not_changed() -> None:
    raw = b'{ "temperature" : 1.0e400, "n":1e0, "x" : "\\u00e4\\ud800" } \n'
    account = Account()
    body = parse_body(raw)
    hints = read_hints({}, body, "", SessionTree(), account)

    def content(owner: Owner | None) -> bytes:
        return body_for_engine(
            raw,
            body,
            path=CHAT,
            hints=hints,
            owner=owner,
            cache_salt=None,
            traits=PLUGIN,
            account=account,
        )

    assert content(None) == raw
    stamped = content(OWNER)
    assert stamped.startswith(raw.rstrip()[:-1])
    assert json.loads(stamped)["custom_params"] == {"kvflow": STAMP}


values = st.none() | st.booleans() | st.integers() | st.text(max_size=9) | st.lists(st.integers())
fields = st.dictionaries(
    st.sampled_from(["model", "messages", "a", "priority", "cache_salt"]), values
)


@given(
    body=fields,
    hints=st.booleans(),
    indent=st.sampled_from([None, 2]),
    end=st.sampled_from(["", " \n\t"]),
)
def test_all_else_in_a_body_arrives(
    body: dict[str, Any], hints: bool, indent: int | None, end: str
) -> None:
    given = {**body, **({"agent_hints": IDENTITY} if hints else {})}
    raw = (json.dumps(given, indent=indent) + end).encode()
    account = Account()
    content = body_for_engine(
        raw,
        parse_body(raw),
        path=CHAT,
        hints=read_hints({}, given, "", SessionTree(), account),
        owner=OWNER,
        cache_salt=None,
        traits=PLUGIN,
        account=account,
    )

    assert json.loads(content) == {**body, "custom_params": {"kvflow": STAMP}}


@pytest.mark.parametrize(
    ("settings", "traits"),
    [
        ({}, EngineTraits("sglang", "none")),
        ({"radix_cache_backend": "kvflow"}, EngineTraits("kvflow", "none")),
        ({"enable_priority_scheduling": True}, EngineTraits("sglang", "higher_first")),
        (
            {
                "radix_cache_backend": "kvflow",
                "enable_priority_scheduling": True,
                "schedule_low_priority_values_first": True,
            },
            EngineTraits("kvflow", "lower_first"),
        ),
        ({"schedule_low_priority_values_first": True}, EngineTraits("sglang", "none")),
    ],
)
def test_what_sglang_says_of_itself(settings: dict[str, Any], traits: EngineTraits) -> None:
    assert sglang_traits(settings) == traits


@pytest.mark.parametrize("salt", [5, ["x"], {"a": 1}, True])
def test_a_salt_that_is_none_fails_no_call(salt: object) -> None:
    body, account = sent({"messages": [], "nvext": {"cache_salt": salt}})
    assert "cache_salt" not in body
    assert account.ignored["nvext.cache_salt"] == "must be a string"
    body, account = sent({"messages": [], "nvext": {"cache_salt": "mine"}})
    assert body["cache_salt"] == "mine"
