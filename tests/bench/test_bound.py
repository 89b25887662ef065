from __future__ import annotations

from kvflow.bench.arms import ArmCache
from kvflow.bench.bound import bounds
from kvflow.bench.reply import Reply
from tests.bench.made_up import reply

PAGE = 4


def replies(*first_ids: int) -> list[Reply]:
    """Prompts of two pages each; answers of a page and one token, which is not cached."""
    return [
        reply(
            prompt_ids=range(first, first + 8),
            output_ids=range(first + 8, first + 13),
            started_s=float(number),
        )
        for number, first in enumerate(first_ids)
    ]


def test_the_tiers_are_one_cache_and_the_host_alone_is_another() -> None:
    cycle = replies(0, 100, 200, 0, 100, 200)
    found = bounds(cycle, ArmCache(3 * PAGE, 5 * PAGE, False, PAGE))
    assert found.whole is not None
    assert found.mirrored == [0, 0, 0, 8, 0, 8]
    assert sum(found.whole) == 24


def test_calls_count_in_the_order_in_which_they_started() -> None:
    late, early = replies(0), replies(0)
    assert bounds(early + late, ArmCache(400, 0, False, PAGE)).whole == [0, 8]
    swapped = [reply(prompt_ids=range(8), started_s=5.0), reply(prompt_ids=range(8))]
    assert bounds(swapped, ArmCache(400, 0, False, PAGE)).whole == [8, 0]


def test_there_is_no_bound_where_it_would_say_nothing() -> None:
    assert bounds(replies(0), ArmCache(400, 400, True, PAGE)) == (None, None)
    assert bounds([reply()], ArmCache(400, 0, False, PAGE)) == (None, None)
    assert bounds(replies(0), ArmCache(400, 0, False, PAGE)).mirrored is None
    assert bounds(replies(0), ArmCache(400, 8, False, PAGE)).mirrored is None
