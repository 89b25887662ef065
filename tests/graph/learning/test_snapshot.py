"""A model that was stored goes on as the one it was made of."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest

from kvflow.graph.learning import TransitionModel, declarable_graph
from kvflow.graph.learning.snapshot import model_values, restore_model
from tests.graph.learning.playing import chain, whole


def taught(seed: int, workflows: int, agents: str = "abcdef") -> TransitionModel:
    rng, model = random.Random(seed), TransitionModel()
    for _ in range(workflows):
        whole(model, chain("".join(rng.choices(agents, k=5))))
        whole(model, "+a -a +b +c -b -c +d -d")
    return model


def back(model: TransitionModel) -> TransitionModel:
    return restore_model(json.loads(json.dumps(model_values(model))))


@pytest.mark.parametrize("workflows", [0, 1, 40])
def test_a_restored_model_goes_on_alike(workflows: int) -> None:
    model = taught(7, workflows)
    twin = back(model)
    for _ in range(3):
        assert twin.agent_ids == model.agent_ids
        assert twin.entries() == model.entries()
        assert twin.revision == model.revision
        assert twin.score.scored == model.score.scored
        assert twin.score.used is model.score.used
        assert twin.score.value == pytest.approx(model.score.value)
        for source in model.agent_ids:
            assert twin.successors(source) == model.successors(source)
            for target in model.agent_ids:
                share = model.probability(source, target)
                assert twin.probability(source, target) == pytest.approx(share, abs=1e-5)
                after = model.came_after(source, target)
                assert twin.came_after(source, target) == pytest.approx(after, abs=1e-5)
        for one in (model, twin):
            whole(one, chain("abcabd"))
    graph, again = declarable_graph(model), declarable_graph(twin)
    assert graph is not None
    assert again is not None
    assert (again.agent_ids, again.entry) == (graph.agent_ids, graph.entry)


def test_what_was_seen_least_recently_is_still_forgotten_first() -> None:
    model = TransitionModel()
    for number in range(256):
        whole(model, f"+a{number} -a{number}")
    whole(model, "+a0 -a0")
    twin = back(model)
    whole(twin, "+new -new")
    assert "a0" in twin
    assert "a1" not in twin


def _nothing() -> dict[str, Any]:
    return model_values(taught(1, 2))


@pytest.mark.parametrize(
    "change",
    [
        {"names": []},
        {"names": None},
        {"agents": 3},
        {"agents": [[0, float("nan"), [], 0, []]]},
        {"agents": [[0, -1, [], 0, []]]},
        {"agents": [[0, True, [], 0, []]]},
        {"agents": [[-1, 1, [], 0, []]]},
        {"agents": [[0.5, 1, [], 0, []]]},
        {"agents": [[0, 1, [[0, float("inf")]], 0, []]]},
        {"agents": [[0, 1, [[0]], 0, []]]},
        {"agents": [[0, "1", [], 0, []]]},
        {"agents": [[0, 1, [], 0, []]] * 257},
        {"names": [str(n) for n in range(65)], "began": [[n, 1] for n in range(65)]},
        {"score": [2.0, 1, True]},
        {"score": [0.5, -1, True]},
        {"revision": "x"},
    ],
)
def test_what_is_no_model_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises((KeyError, TypeError, ValueError, IndexError)):
        restore_model(_nothing() | change)
    for name in _nothing():
        with pytest.raises(KeyError):
            restore_model({key: value for key, value in _nothing().items() if key != name})
