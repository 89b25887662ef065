"""Hints over the steps that engines are told: what they change, and that they end."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from kvflow.server.hints import HintOverlay

KEY = ("c", "w")
STEPS = {"running": 0, "next": 1, "later": 3, "never": None}


def test_keep_and_release() -> None:
    overlay = HintOverlay()
    assert overlay.steps(KEY, STEPS) is STEPS
    for agent in STEPS:
        overlay.put(KEY, agent, "keep", 10.0)
    assert overlay.steps(KEY, STEPS) == {"running": 0, "next": 1, "later": 1, "never": 1}
    for agent in STEPS:
        overlay.put(KEY, agent, "release", 10.0)
    assert overlay.steps(KEY, STEPS) == {"running": 0, "next": None, "later": None, "never": None}
    assert overlay.steps(("c", "other"), STEPS) == STEPS
    assert overlay.steps(("other", "w"), STEPS) == STEPS


def test_they_end() -> None:
    overlay = HintOverlay()
    overlay.put(KEY, "later", "keep", 10.0)
    overlay.put(("c", "v"), "a", "release", 20.0)

    assert overlay.expire(9.9) == set()
    assert overlay.expire(10.0) == {KEY}
    assert overlay.steps(KEY, STEPS) == STEPS
    assert overlay.expire(30.0) == {("c", "v")}
    assert len(overlay) == 0


def test_a_shorter_keep_does_not_shorten_a_longer_one() -> None:
    overlay = HintOverlay()
    overlay.put(KEY, "later", "keep", 100.0)
    overlay.put(KEY, "later", "keep", 10.0)
    assert overlay.expire(50.0) == set()
    assert overlay.steps(KEY, STEPS)["later"] == 1
    # The last word counts where they differ.
    overlay.put(KEY, "later", "release", 60.0)
    assert overlay.steps(KEY, STEPS)["later"] is None
    assert overlay.expire(60.0) == {KEY}
    assert overlay.steps(KEY, STEPS)["later"] == 3


def test_a_workflow_that_ends_takes_them_along() -> None:
    overlay = HintOverlay()
    overlay.put(KEY, "later", "keep", 10.0)
    overlay.drop(KEY)
    assert overlay.steps(KEY, STEPS) == STEPS
    assert len(overlay) == 0
    assert overlay.expire(10.0) == set()


def test_room() -> None:
    overlay = HintOverlay(max_hints=5, max_of_client=3)
    for agent in "abc":
        overlay.put(KEY, agent, "keep", 10.0)
    assert not overlay.has_room(("c", "v"), 1)
    assert overlay.has_room(("d", "v"), 2)
    assert not overlay.has_room(("d", "v"), 3)
    overlay.forget(KEY, "a")
    overlay.forget(KEY, "a")
    assert overlay.has_room(KEY, 1)


keys = st.sampled_from([("c", "w"), ("c", "v"), ("d", "w")])
agents = st.sampled_from(["a", "b", "later"])
operations = st.lists(
    st.one_of(
        st.tuples(
            st.just("put"), keys, agents, st.sampled_from(["keep", "release"]), st.integers(1, 20)
        ),
        st.tuples(st.just("forget"), keys, agents),
        st.tuples(st.just("drop"), keys),
        st.tuples(st.just("wait"), st.integers(1, 10)),
    ),
    max_size=40,
)


@given(operations)
def test_against_a_plain_list(done: list[Any]) -> None:
    overlay = HintOverlay(max_hints=1)
    plain: dict[Any, tuple[str, int]] = {}
    now = 0
    for operation, *values in done:
        match operation:
            case "put":
                key, agent, effect, for_s = values
                until = now + for_s
                old = plain.get((key, agent))
                if old is not None and old[0] == effect == "keep":
                    until = max(until, old[1])
                plain[key, agent] = (effect, until)
                overlay.put(key, agent, effect, now + for_s)
            case "forget":
                key, agent = values
                plain.pop((key, agent), None)
                overlay.forget(key, agent)
            case "drop":
                plain = {at: hint for at, hint in plain.items() if at[0] != values[0]}
                overlay.drop(values[0])
            case "wait":
                now += values[0]
                over = {at for at, (_, until) in plain.items() if until <= now}
                assert overlay.expire(now) == {key for key, _ in over}
                plain = {at: hint for at, hint in plain.items() if at not in over}
    assert len(overlay) == len(plain)
    for key in {key for key, _ in plain}:
        expected = {
            agent: {"keep": 1, "release": None}[plain[key, agent][0]]
            if (key, agent) in plain
            else 5
            for agent in ("a", "b", "later")
        }
        assert overlay.steps(key, {"a": 5, "b": 5, "later": 5}) == expected
