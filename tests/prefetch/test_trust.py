import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvflow.prefetch import trust as module
from kvflow.prefetch.trust import PredictionTrust, Trust

NEVER = math.inf
ONE = ("client", "1")
TWO = ("client", "2")


def starts(trust: PredictionTrust, steps_before: float, count: int = 1) -> None:
    """Let an agent of workflow ONE start that was ``steps_before`` away, so many times."""
    for _ in range(count):
        trust.update(ONE, {"a": steps_before, "b": NEVER})
        trust.update(ONE, {"a": 0, "b": NEVER})


def score_after(outcomes: list[bool]) -> float:
    score = 1.0
    for hit in outcomes:
        score = 0.8 * score + 0.2 * hit
    return score


@pytest.mark.parametrize(
    ("before", "now", "hits", "misses"),
    [
        (1, 0, 1, 0),
        (2, 0, 0, 1),
        (NEVER, 0, 0, 1),
        (0, 0, 0, 0),
        (1, 1, 0, 0),
        (2, 1, 0, 0),
        (1, NEVER, 0, 0),
        (0, 1, 0, 0),
    ],
)
def test_what_an_update_scores(before: float, now: float, hits: int, misses: int) -> None:
    trust = PredictionTrust()
    trust.update(ONE, {"a": before})
    assert (trust.hits, trust.misses) == (0, 0)
    trust.update(ONE, {"a": now})
    assert (trust.hits, trust.misses) == (hits, misses)


@pytest.mark.parametrize(
    ("steps", "hits", "misses"), [(0, 0, 0), (1, 1, 0), (2, 0, 1), (NEVER, 0, 1)]
)
def test_what_a_call_scores(steps: float, hits: int, misses: int) -> None:
    trust = PredictionTrust()
    trust.update(ONE, {"a": steps})
    trust.called(ONE, "a")
    assert (trust.hits, trust.misses) == (hits, misses)


def test_an_agent_the_workflow_does_not_have_is_a_miss() -> None:
    trust = PredictionTrust()
    trust.update(ONE, {"a": 1})
    trust.called(ONE, "stranger")
    assert (trust.hits, trust.misses) == (0, 1)


def test_where_nothing_was_predicted_nothing_is_scored() -> None:
    trust = PredictionTrust()
    assert trust.called(ONE, "a") == []
    assert trust.prefetched(ONE, used=False) == []
    trust.forget(ONE)
    assert (trust.hits, trust.misses) == (0, 0)
    assert trust.trust(ONE) == "full"


@pytest.mark.parametrize("steps", [1, 2])
def test_a_request_before_its_start_event_is_one_start(steps: float) -> None:
    trust = PredictionTrust()
    trust.update(ONE, {"a": steps, "b": 1})
    trust.called(ONE, "a")
    trust.called(ONE, "a")
    trust.update(ONE, {"a": steps, "b": 1})
    trust.update(ONE, {"a": 0, "b": 1})
    trust.called(ONE, "a")
    assert trust.hits + trust.misses == 1
    trust.update(ONE, {"a": 1, "b": 1})
    trust.update(ONE, {"a": 0, "b": 1})
    assert trust.hits + trust.misses == 2


def test_without_events_agents_that_take_turns_are_scored_each_time() -> None:
    trust = PredictionTrust()
    trust.update(ONE, {"a": 1, "b": 2})
    for agent_id in ("a", "b", "b", "a", "b"):
        trust.called(ONE, agent_id)
    assert (trust.hits, trust.misses) == (2, 2)


def test_misses_take_prefetch_first_and_then_the_priorities() -> None:
    trust = PredictionTrust()
    seen: list[Trust] = []
    for _ in range(5):
        starts(trust, 2)
        seen.append(trust.trust(ONE))
    # 0.8, 0.64, 0.512, 0.41, 0.328
    assert seen == ["full", "full", "no_prefetch", "no_prefetch", "none"]


def test_hits_bring_both_back_above_higher_thresholds() -> None:
    trust = PredictionTrust()
    starts(trust, 2, 5)
    seen: list[Trust] = []
    for _ in range(5):
        starts(trust, 1)
        seen.append(trust.trust(ONE))
    # 0.462, 0.570, 0.656, 0.725, 0.780
    assert seen == ["none", "no_prefetch", "no_prefetch", "no_prefetch", "full"]


@given(st.lists(st.booleans(), max_size=60))
@settings(deadline=None)
def test_trust_follows_the_score(outcomes: list[bool]) -> None:
    trust = PredictionTrust()
    expected_prefetch = expected_priorities = True
    for length, hit in enumerate(outcomes, 1):
        starts(trust, 1 if hit else 3)
        score = score_after(outcomes[:length])
        expected_prefetch = score > 0.75 or (expected_prefetch and score >= 0.6)
        expected_priorities = score > 0.5 or (expected_priorities and score >= 0.35)
        expected = "full" if expected_prefetch else "no_prefetch"
        assert trust.trust(ONE) == (expected if expected_priorities else "none")
    assert (trust.hits, trust.misses) == (outcomes.count(True), outcomes.count(False))


def test_a_change_names_the_live_workflows_of_the_family_as_they_joined() -> None:
    trust = PredictionTrust()
    keys = [("client", name) for name in ("d", "b", "c", "a")]
    others = [("other client", "x"), ("client", "other agents")]
    for key in keys:
        trust.update(key, {"a": NEVER, "b": 2})
    trust.update(others[0], {"a": NEVER, "b": 2})
    trust.update(others[1], {"a": NEVER, "c": 2})
    trust.forget(keys[1])
    live = [keys[0], keys[2], keys[3]]
    assert trust.called(keys[2], "a") == []
    assert trust.called(keys[2], "b") == []
    assert trust.update(keys[0], {"a": 0, "b": 2}) == live
    assert [trust.trust(key) for key in live] == ["no_prefetch"] * 3
    assert [trust.trust(key) for key in others] == ["full"] * 2
    assert trust.update(keys[0], {"a": 0, "b": 0}) == []


def test_several_outcomes_of_one_update_are_one_change() -> None:
    trust = PredictionTrust()
    agents = ["a", "b", "c", "d", "e"]
    trust.update(ONE, dict.fromkeys(agents, 2.0))
    assert trust.update(ONE, dict.fromkeys(agents, 0.0)) == [ONE]
    assert trust.trust(ONE) == "none"


def test_a_new_workflow_starts_with_what_its_family_has_earned() -> None:
    trust = PredictionTrust()
    starts(trust, 2, 5)
    trust.forget(ONE)
    assert trust.trust(ONE) == "full"
    assert trust.update(TWO, {"b": 1, "a": 1}) == []
    assert trust.trust(TWO) == "none"


def test_a_workflow_that_gets_other_agents_joins_their_family() -> None:
    trust = PredictionTrust()
    trust.update(TWO, {"a": 1, "b": 1})
    starts(trust, 2, 5)
    assert trust.trust(TWO) == "none"
    assert trust.update(TWO, {"a": 1, "b": 1, "c": 0}) == [TWO]
    assert trust.trust(TWO) == "full"
    starts(trust, 1, 5)
    assert trust.trust(ONE) == "full"
    assert trust.hits + trust.misses == 10


def test_leaving_a_family_while_its_trust_changes_names_who_stayed() -> None:
    trust = PredictionTrust()
    trust.update(TWO, {"a": 2, "b": NEVER})
    starts(trust, 2, 2)
    assert trust.update(TWO, {"a": 0, "b": NEVER, "c": 1}) == [ONE]
    assert (trust.trust(ONE), trust.trust(TWO)) == ("no_prefetch", "full")


def test_wasted_prefetches_take_prefetch_and_nothing_else() -> None:
    trust = PredictionTrust()
    trust.update(ONE, {"a": 1, "b": NEVER})
    changes = [trust.prefetched(ONE, used=False) for _ in range(20)]
    # 0.8 to the sixth power is the first below 0.3.
    assert [number for number, changed in enumerate(changes, 1) if changed] == [6]
    assert trust.trust(ONE) == "no_prefetch"


def test_used_prefetches_keep_prefetch() -> None:
    trust = PredictionTrust()
    trust.update(ONE, {"a": 1})
    for _ in range(20):
        trust.prefetched(ONE, used=False)
        trust.prefetched(ONE, used=True)
    assert trust.trust(ONE) == "full"


def test_hits_let_prefetch_be_tried_again_after_a_while() -> None:
    trust = PredictionTrust()
    starts(trust, 1)
    for _ in range(6):
        trust.prefetched(ONE, used=False)
    assert trust.trust(ONE) == "no_prefetch"
    hits = 0
    while trust.trust(ONE) != "full" and hits < 100:
        starts(trust, 1)
        hits += 1
    assert 15 <= hits <= 25


def test_hits_do_not_make_up_for_waste_while_prefetch_goes_on() -> None:
    trust = PredictionTrust()
    for _ in range(5):
        starts(trust, 1, 10)
        assert trust.trust(ONE) == "full"
        trust.prefetched(ONE, used=False)
    trust.prefetched(ONE, used=False)
    assert trust.trust(ONE) == "no_prefetch"


def test_waste_found_after_the_end_of_the_workflow_counts() -> None:
    trust = PredictionTrust()
    trust.update(ONE, {"a": 1})
    trust.update(TWO, {"a": 1})
    trust.forget(ONE)
    changes = [trust.prefetched(ONE, used=False) for _ in range(6)]
    assert changes[-1] == [TWO]
    assert trust.trust(TWO) == "no_prefetch"


def test_only_so_many_ended_workflows_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_ENDED_WORKFLOWS", 1)
    trust = PredictionTrust()
    for key in (ONE, TWO):
        trust.update(key, {"a": 1})
        trust.forget(key)
    trust.update(("client", "3"), {"a": 1})
    for _ in range(10):
        assert trust.prefetched(ONE, used=False) == []
    assert any(trust.prefetched(TWO, used=False) for _ in range(10))


def test_the_family_joined_least_recently_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_FAMILIES", 2)
    trust = PredictionTrust()
    for agent in ("a", "b"):
        trust.update(ONE, {agent: 2, "x": 2, "y": 2})
        trust.update(ONE, {agent: 0, "x": 0, "y": 0})
        trust.forget(ONE)
    trust.update(ONE, {"a": 1, "x": 1, "y": 1})
    trust.update(TWO, {"c": 1})
    trust.forget(ONE)
    trust.update(ONE, {"a": 1, "x": 1, "y": 1})
    assert trust.trust(ONE) == "no_prefetch"
    trust.forget(ONE)
    trust.update(ONE, {"b": 1, "x": 1, "y": 1})
    assert trust.trust(ONE) == "full"
