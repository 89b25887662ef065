"""Who gets a turn when, with an event loop that others use as well."""

from __future__ import annotations

import asyncio
from itertools import pairwise

from kvflow.server.fan_out import FanOut


class Listener:
    """Counts its turns; goes on waiting if it is told so."""

    def __init__(self, *, goes_on: bool = True) -> None:
        self.turns = 0
        self.goes_on = goes_on

    def take_turn(self) -> bool:
        self.turns += 1
        return self.goes_on


def waiting(fan_out: FanOut, count: int, *, goes_on: bool = True) -> list[Listener]:
    listeners = [Listener(goes_on=goes_on) for _ in range(count)]
    for one in listeners:
        fan_out.wait_for_news(one)
    return listeners


async def test_all_get_a_turn_and_between_slices_others_run() -> None:
    fan_out = FanOut()
    listeners = waiting(fan_out, 1_000)

    fan_out.all()

    told = [sum(one.turns for one in listeners)]
    while told[-1] < len(listeners):
        await asyncio.sleep(0)
        told.append(sum(one.turns for one in listeners))
    assert told[0] == 0
    assert max(after - before for before, after in pairwise(told)) <= 16
    assert len(told) >= 1_000 / 16
    await asyncio.sleep(0.01)
    assert {one.turns for one in listeners} == {1}


async def test_changes_before_its_turn_are_one_turn() -> None:
    fan_out = FanOut()
    (listener,) = waiting(fan_out, 1)
    fan_out.all()
    fan_out.all()
    await asyncio.sleep(0.01)
    assert listener.turns == 1

    fan_out.all()
    await asyncio.sleep(0.01)

    assert listener.turns == 2


async def test_whoever_was_told_before_a_change_is_told_again_and_nobody_is_passed_over() -> None:
    fan_out = FanOut()
    listeners = waiting(fan_out, 100)
    fan_out.all()
    for _ in range(3):
        await asyncio.sleep(0)
    early = [one for one in listeners if one.turns]
    assert 0 < len(early) < 100

    fan_out.all()
    await asyncio.sleep(0.05)

    assert all(one.turns == (2 if one in early else 1) for one in listeners)


async def test_one_that_left_or_does_not_wait_gets_no_turn() -> None:
    fan_out = FanOut()
    gone, stays = waiting(fan_out, 2)
    (busy,) = waiting(fan_out, 1, goes_on=False)
    fan_out.forget(gone)

    fan_out.all()
    await asyncio.sleep(0.01)
    assert (gone.turns, stays.turns, busy.turns) == (0, 1, 1)
    fan_out.all()
    await asyncio.sleep(0.01)
    assert (stays.turns, busy.turns) == (2, 1)

    fan_out.wait_for_news(busy)
    fan_out.all()
    fan_out.forget(stays)
    await asyncio.sleep(0.01)
    assert (stays.turns, busy.turns) == (2, 2)
