"""An eviction order by the time at which agents are expected."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import pytest

from kvflow.errors import InvalidInputError
from kvflow.eviction import Owner, OwnershipMap
from kvflow.protocol import WorkflowSteps
from kvflow.sglang_plugin.channel import _parts
from kvflow.sglang_plugin.control import LeaseLost, ServiceUpdate, WorkflowUpdate
from kvflow.sglang_plugin.due_times import UNKNOWN_STEP_S
from kvflow.sglang_plugin.settings import PluginSettings
from kvflow.sglang_plugin.weights import WorkflowWeights


class Seen:
    def __init__(self, order: Any = "time") -> None:
        self.changed: list[Owner[Any]] = []
        self.weights = WorkflowWeights(self.changed.append, lambda owner: None)
        self.weights.order_by(order)

    def told(
        self,
        workflow_id: str,
        steps: Mapping[str, float],
        due_s: Mapping[str, float] | None,
        now_s: float = 0.0,
    ) -> None:
        told = WorkflowUpdate(("c", workflow_id), 1, steps, {}, due_s)
        self.weights.apply(ServiceUpdate((told,), received_s=now_s))

    def owner(self, agent_id: str) -> Owner[Any]:
        return self.weights.prefix_owner("c", agent_id, None)


def test_what_is_due_later_ranks_lower_whatever_its_steps() -> None:
    seen = Seen()
    soon, late = seen.owner("soon"), seen.owner("late")
    seen.told("w1", {"x": 0, "late": 1}, {"x": 0.0, "late": 160.0})
    seen.told("w2", {"y": 0, "soon": 3}, {"y": 0.0, "soon": 104.0})
    assert (soon.order, late.order) == (104.0, 160.0)
    assert (soon.steps, late.steps) == (3, 1)  # prefetch goes by steps as before
    ownership: OwnershipMap[str] = OwnershipMap()
    ownership.assign(late, ["shared"])
    ownership.assign(soon, ["shared"])
    assert ownership.rank("shared") == ("prefix", 104.0)


def test_by_steps_times_change_nothing() -> None:
    seen = Seen("steps")
    late = seen.owner("late")
    seen.told("w1", {"x": 0, "late": 1}, {"x": 0.0, "late": 160.0})
    assert (late.order, late.due_s) == (1, None)


def test_the_earliest_of_an_agents_workflows_counts_and_goes_with_it() -> None:
    seen = Seen()
    owner = seen.owner("a")
    seen.told("w1", {"a": 4}, {"a": 150.0})
    seen.told("w2", {"a": 6}, {"a": 120.0})
    assert owner.order == 120.0
    seen.weights.apply(ServiceUpdate(closed=(("c", "w2"),)))
    assert (owner.order, owner.steps) == (150.0, 4)
    seen.weights.apply(LeaseLost())
    assert owner.order == math.inf


def test_a_running_agent_comes_first_and_one_that_cannot_run_last() -> None:
    seen = Seen()
    running, never = seen.owner("running"), seen.owner("never")
    seen.told("w", {"running": 0, "never": math.inf}, {"running": 7.0, "never": math.inf})
    assert (running.order, never.order) == (0, math.inf)


def test_without_times_a_step_counts_a_second_from_when_it_was_told() -> None:
    seen = Seen()
    owner = seen.owner("a")
    seen.told("w", {"a": 3}, None, now_s=50.0)
    assert owner.order == 50.0 + 2 * UNKNOWN_STEP_S


def test_new_times_alone_rank_an_owner_anew() -> None:
    seen = Seen()
    owner = seen.owner("a")
    history = seen.weights.history_owner(("c", "w"), "a", ("conversation",))  # type: ignore[arg-type]
    seen.told("w", {"a": 2}, {"a": 110.0})
    seen.changed.clear()
    seen.told("w", {"a": 2}, {"a": 130.0})
    assert set(seen.changed) == {owner, history}
    assert (owner.order, history.order) == (130.0, 130.0)


def test_the_channel_puts_times_on_its_own_clock() -> None:
    steps = WorkflowSteps(
        client_id="c",
        workflow_id="w",
        version=1,
        ttl_s=60,
        steps_to_execution={"a": 1, "b": None},
        expected_s_to_execution={"a": 12.5, "b": None},
    )
    plain = steps.model_copy(update={"expected_s_to_execution": None})
    (message,) = _parts([steps, plain])
    due_s = message.workflows[0].due_s
    assert due_s is not None
    assert due_s["a"] - message.received_s == pytest.approx(12.5)
    assert due_s["b"] == math.inf
    assert message.workflows[1].due_s is None


def test_the_setting() -> None:
    assert PluginSettings.from_env({}).order == "steps"
    assert PluginSettings.from_env({"KVFLOW_ORDER": "time"}).order == "time"
    with pytest.raises(InvalidInputError, match="KVFLOW_ORDER"):
        PluginSettings.from_env({"KVFLOW_ORDER": "probability"})
