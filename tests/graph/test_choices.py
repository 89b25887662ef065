"""Declared probabilities: which are told, and when."""

from __future__ import annotations

import pytest

from kvflow.graph import Agent, AgentStepGraph, Edge, WorkflowState
from kvflow.graph.choices import declared_shares
from tests.graph.builders import graph, play

TESTED = AgentStepGraph(
    [Agent(name, join="any") for name in ("coder", "tester", "done")],
    [
        Edge("coder", "tester"),
        Edge("tester", "coder", "choice", 0.8, max_iterations=2),
        Edge("tester", "done", "choice", 0.1),
    ],
    ["coder"],
)
BOTH = {"coder": 0.8, "done": 0.1}


def test_only_agents_with_a_declaration_have_shares() -> None:
    assert TESTED.declared_shares == {"tester": {1: 0.8, 2: 0.1}}
    assert graph("a b c", "a?b a?c").declared_shares == {}


def test_what_is_not_declared_shares_what_is_left_and_always_is_certain() -> None:
    edges = [
        Edge("a", "b", "choice", 0.4),
        Edge("a", "c", "choice"),
        Edge("a", "d", "choice"),
        Edge("a", "e"),
    ]
    assert declared_shares(edges) == {
        "a": {0: 0.4, 1: pytest.approx(0.3), 2: pytest.approx(0.3), 3: 1.0}
    }
    full = [Edge("a", "b", "choice", 1.0), Edge("a", "c", "choice")]
    assert declared_shares(full) == {"a": {0: 1.0, 1: 0.0}}


@pytest.mark.parametrize(
    ("events", "told"),
    [
        ("", {}),
        ("+coder", {}),
        ("+coder -coder", {}),
        ("+coder -coder +tester", {"tester": BOTH}),  # it runs
        ("+coder -coder +tester -tester", {"tester": BOTH}),  # its choice is not known yet
        ("+coder -coder +tester -tester +coder", {}),
        ("+coder -coder +tester -tester +done", {}),
        # The second time round was the last that the limit allows.
        (
            "+coder" + 2 * " -coder +tester -tester +coder" + " -coder +tester",
            {"tester": {"done": 0.1}},
        ),
    ],
)
def test_choices_that_are_to_come(events: str, told: dict[str, dict[str, float]]) -> None:
    assert play(WorkflowState(TESTED), events).open_choices() == told
