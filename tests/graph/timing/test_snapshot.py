"""Durations that were stored go on as those they were made of."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest

from kvflow.graph.timing import FamilyDurations
from kvflow.graph.timing.snapshot import MOST_KEPT, duration_values, restore_durations


def measured(count: int, agents: int = 6) -> FamilyDurations:
    rng, durations = random.Random(3), FamilyDurations()
    for _ in range(count):
        one, other = f"a{rng.randrange(agents)}", f"a{rng.randrange(agents)}"
        durations.learn_run(one, rng.uniform(0, 30))
        durations.learn_gap(one, other, rng.uniform(0, 30))
    return durations


def back(durations: FamilyDurations) -> FamilyDurations:
    return restore_durations(json.loads(json.dumps(duration_values(durations))))


@pytest.mark.parametrize("count", [0, 1, 400])
def test_restored_durations_go_on_alike(count: int) -> None:
    durations = measured(count)
    twin = back(durations)
    assert twin.revision == durations.revision
    assert twin.known is durations.known
    for _ in range(20):
        for one in ("a0", "a1", "nobody"):
            assert twin.run_s(one) == pytest.approx(durations.run_s(one), abs=1e-5)
            assert twin.gap_s(one, "a2") == pytest.approx(durations.gap_s(one, "a2"), abs=1e-5)
            assert twin.run_s(one, 7.0) == pytest.approx(durations.run_s(one, 7.0), abs=1e-5)
        for side in (durations, twin):
            side.learn_run("a0", 1.0)
            side.learn_gap("a1", "a2", 2.0)


def test_of_many_agents_those_measured_last_are_kept() -> None:
    durations = FamilyDurations()
    for number in range(MOST_KEPT + 10):
        durations.learn_run(f"a{number}", 1.0)
    durations.learn_run("a0", 1.0)
    twin = back(durations)
    assert twin.measured_run_s("a0") == 1.0
    assert twin.measured_run_s("a11") == 1.0
    assert twin.measured_run_s("a10") is None


@pytest.mark.parametrize(
    "change",
    [
        {"names": []},
        {"runs": [[0, float("nan")]]},
        {"runs": [[0, -1]]},
        {"runs": [[0, "1"]]},
        {"runs": [[0, True]]},
        {"runs": [[0, 1.0]] * (MOST_KEPT + 1)},
        {"gaps": [[0]]},
        {"gaps": 3},
        {"revision": "x"},
    ],
)
def test_what_is_no_measurement_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises((KeyError, TypeError, ValueError, IndexError)):
        restore_durations(duration_values(measured(5)) | change)
