from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvflow.prefetch import transitions
from kvflow.prefetch.transitions import TransitionCounts

ONE = ("client", "1")
TWO = ("client", "2")


def counted(*runs: str) -> TransitionCounts:
    """Workflows whose agents ran in this order, one letter each."""
    counts = TransitionCounts()
    for run in runs:
        for agent_id in run:
            counts.ran(ONE, agent_id)
        counts.forget(ONE)
    return counts


@pytest.mark.parametrize(
    ("runs", "running", "agent_id", "expected"),
    [
        ([], ["a"], "b", 1.0),
        (["ab"], [], "b", 1.0),
        (["ab"], ["b"], "c", 1.0),
        (["ab"], ["a"], "b", 1.0),
        (["ab"], ["a"], "c", 1 / 3),
        (["ab", "ac"], ["a"], "b", 2 / 4),
        (["ab", "ab", "ab", "ac"], ["a"], "b", 4 / 6),
        (["ab", "ab", "ab", "ac"], ["a"], "c", 2 / 6),
        (["ab", "ab", "ab", "ac"], ["a"], "d", 1 / 7),
        (["aaab"], ["a"], "a", 3 / 5),
        (["ab", "xc"], ["a", "x"], "c", 1.0),
        (["ab", "ab", "xb", "xc"], ["a", "x"], "c", 2 / 4),
        (["ab", "ab", "xb", "xc"], ["x", "a"], "c", 2 / 4),
    ],
)
def test_probability(runs: list[str], running: list[str], agent_id: str, expected: float) -> None:
    counts = counted(*runs)
    assert counts.probability("client", iter(running), agent_id) == pytest.approx(expected)


def test_clients_are_apart_and_workflows_of_one_learn_together() -> None:
    counts = counted("ab")
    counts.ran(("other", "1"), "a")
    counts.ran(("other", "1"), "c")
    counts.ran(TWO, "a")
    counts.ran(TWO, "c")
    assert counts.probability("client", ["a"], "c") == pytest.approx(2 / 4)
    assert counts.probability("other", ["a"], "c") == 1.0


def test_interleaved_workflows_do_not_follow_each_other() -> None:
    counts = TransitionCounts()
    for key, agent_id in [(ONE, "a"), (TWO, "x"), (ONE, "b"), (TWO, "y")]:
        counts.ran(key, agent_id)
    assert counts.probability("client", ["a"], "b") == 1.0
    assert counts.probability("client", ["x"], "y") == 1.0
    assert counts.probability("client", ["b"], "y") == 1.0
    assert counts.probability("client", ["a"], "x") < 1.0


def test_the_first_agent_after_forget_follows_nobody() -> None:
    counts = counted("ab", "c")
    counts.forget(ONE)
    assert counts.probability("client", ["b"], "x") == 1.0


@given(st.lists(st.text("abc", max_size=8), max_size=8), st.sampled_from("abc"))
@settings(deadline=None)
def test_agrees_with_counting_pairs(runs: list[str], source: str) -> None:
    counts = counted(*runs)
    pairs = Counter(run[i : i + 2] for run in runs for i in range(len(run) - 1))
    followers = {pair[1]: n for pair, n in pairs.items() if pair[0] == source}
    shares = {target: counts.probability("client", [source], target) for target in "abcd"}
    for target, share in shares.items():
        known = followers | {target: followers.get(target, 0)}
        expected = (known[target] + 1) / (sum(known.values()) + len(known)) if followers else 1.0
        assert share == pytest.approx(expected)
    if followers:
        assert sum(shares[target] for target in followers) == pytest.approx(1.0)


def test_the_source_followed_least_recently_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transitions, "MAX_SOURCES", 2)
    counts = counted("ax", "bx", "ax", "cx")
    assert counts.probability("client", ["b"], "z") == 1.0
    assert counts.probability("client", ["a"], "z") < 1.0
    assert counts.probability("client", ["c"], "z") < 1.0


def test_the_least_recent_successor_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transitions, "MAX_SUCCESSORS", 2)
    counts = counted("ab", "ac", "ab", "ad")
    assert counts.probability("client", ["a"], "b") == pytest.approx(3 / 5)
    assert counts.probability("client", ["a"], "c") == pytest.approx(1 / 6)


DECLARED = {"a": {"b": 0.7, "c": 0.3}}


@pytest.mark.parametrize(
    ("runs", "sources", "agent_id", "expected"),
    [
        ([], ["a"], "b", 0.7),  # nothing observed: as declared
        ([], ["a"], "c", 0.3),
        ([], ["a"], "d", 0.0),
        (["ac"], ["a"], "b", 7 / 11),  # it counts like ten observations
        (["ac"], ["a"], "c", 4 / 11),
        (30 * ["ac"], ["a"], "b", 7 / 40),  # which outweigh it in time
        (30 * ["ac"], ["a"], "c", 33 / 40),
        (["ad"], ["a"], "d", 1 / 11),  # what was not declared does happen
        (["xd"], ["a", "x"], "d", 1.0),  # no declaration: as ever
        (["xd"], ["a", "x"], "b", 0.7),
    ],
)
def test_what_is_declared_counts_like_ten_observations(
    runs: list[str], sources: list[str], agent_id: str, expected: float
) -> None:
    assert transitions.DECLARED_WEIGHT == 10
    counts = counted(*runs)
    assert counts.probability("client", sources, agent_id, DECLARED) == pytest.approx(expected)
