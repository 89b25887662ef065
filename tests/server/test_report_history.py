"""Totals over time."""

from __future__ import annotations

import pytest

from kvflow.server.report_history import COUNTED, Growth, History, Slot, quantile_s

BOUNDS_S = (1.0, 2.0, 4.0)


def grown(tokens: int, times: tuple[int, ...] = (), bounds_s: tuple[float, ...] = ()) -> Growth:
    return Growth(dict.fromkeys(COUNTED, 0) | {"prompt_tokens": tokens}, bounds_s, times)


def tokens(slots: list[Slot]) -> list[tuple[int, int]]:
    return [(slot.number, slot.counts["prompt_tokens"]) for slot in slots]


class TestHistory:
    def test_what_comes_in_one_slot_is_added_up(self) -> None:
        history = History(10.0, 3)
        for at_s, count in ((100.0, 1), (109.9, 2), (110.0, 4)):
            history.add(grown(count), at_s)
        assert tokens(history.slots(119.0)) == [(10, 3), (11, 4)]

    def test_the_oldest_go(self) -> None:
        history = History(10.0, 2)
        for at_s in (0.0, 10.0, 20.0):
            history.add(grown(1), at_s)
        assert tokens(history.slots(29.0)) == [(1, 1), (2, 1)]
        assert tokens(history.slots(31.0)) == [(2, 1)]
        assert history.slots(500.0) == []

    def test_sum_of_the_last(self) -> None:
        history = History(10.0, 10)
        for at_s in (0.0, 10.0, 20.0):
            history.add(grown(1, (1, 0, 0, 0), BOUNDS_S), at_s)
        total = history.sum(29.0, 2)
        assert total.counts["prompt_tokens"] == 2
        assert total.first_token_counts == [2, 0, 0, 0]
        assert history.sum(29.0).counts["prompt_tokens"] == 3

    @pytest.mark.parametrize(
        ("slots", "slot_s", "found"), [(60, 10.0, 60), (61, 30.0, 21), (181, 60.0, 31)]
    )
    def test_long_ones_are_told_in_fewer_points(
        self, slots: int, slot_s: float, found: int
    ) -> None:
        history = History(10.0, 360)
        for number in range(slots):
            history.add(grown(1), 10.0 * number)
        length_s, merged = history.merged(10.0 * slots - 1, 60)
        assert (length_s, len(merged)) == (slot_s, found)
        assert sum(slot.counts["prompt_tokens"] for slot in merged) == slots

    def test_an_empty_one(self) -> None:
        assert History(10.0, 5).merged(100.0, 60) == (10.0, [])

    def test_a_clock_that_goes_back_loses_nothing(self) -> None:
        history = History(10.0, 3)
        history.add(grown(1), 100.0)
        history.add(grown(1), 80.0)
        assert tokens(history.slots(100.0)) == [(10, 2)]

    def test_times_of_other_bounds_are_left_out(self) -> None:
        slot = Slot(0)
        slot.add(grown(1, (1, 0, 0, 0), BOUNDS_S))
        slot.add(grown(1, (5, 5), (9.0,)))
        assert slot.first_token_counts == [1, 0, 0, 0]
        assert slot.counts["prompt_tokens"] == 2


@pytest.mark.parametrize(
    ("counts", "q", "value"),
    [
        ((), 0.5, None),
        ((0, 0, 0, 0), 0.5, None),
        ((2, 0, 0, 0), 0.5, 0.5),
        ((0, 4, 0, 0), 0.25, 1.25),
        ((1, 0, 1, 0), 1.0, 4.0),
        ((0, 0, 0, 3), 0.5, 4.0),
        ((9, 0, 0, 1), 0.5, 5 / 9),
    ],
)
def test_quantiles(counts: tuple[int, ...], q: float, value: float | None) -> None:
    assert quantile_s(BOUNDS_S, counts, q) == (value if value is None else pytest.approx(value))
