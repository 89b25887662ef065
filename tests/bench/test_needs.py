from __future__ import annotations

from kvflow.bench.needs import ClientPriorities, workload_needs
from kvflow.workload import Piece
from tests.bench.made_up import call, workflow

SHARED, OWN, LAST = Piece("shared", 64), Piece("own", 32), Piece("last", 10)


def test_what_calls_share_counts_once() -> None:
    first = call("a", prompt=(SHARED, OWN), answer="a1")
    again = call("a", prompt=(SHARED, OWN, LAST), answer="a2")
    needs = workload_needs([workflow(first, again)], page_tokens=16)
    # 64 + 32 + 8 of the answer; 10 + 8 of the second. Whole pages, and one more for each call.
    assert needs.cached_tokens == (112 + 16) + (32 + 16)
    assert needs.calls == 2
    assert needs.largest_prompt_tokens == 106
    assert needs.largest_call_tokens == 128


def test_a_piece_that_follows_something_else_is_something_else() -> None:
    one = call("a", prompt=(SHARED, LAST), answer="x")
    other = call("a", prompt=(OWN, LAST), answer="y")
    needs = workload_needs([workflow(one), workflow(other, workflow_id="w1")], page_tokens=1)
    assert needs.cached_tokens == (64 + 10 + 8 + 1) + (32 + 10 + 8 + 1)
    assert needs.workflows == 2


def test_priorities_follow_the_order_of_first_calls() -> None:
    needs = workload_needs(
        [
            workflow(call("b"), call("a"), call("b")),
            workflow(call("a"), client_id="client1", workflow_id="w1"),
        ],
        page_tokens=16,
    )
    priorities = ClientPriorities(needs.agents)
    assert priorities.of("client0", "b") == 3
    assert priorities.of("client0", "a") == 2
    assert priorities.of("client1", "a") == 1
    assert priorities.of("client1", "b") == 0
