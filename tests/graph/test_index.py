import math

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from kvflow.graph import StepsIndex, WorkflowState
from tests.graph.builders import graph, play

NEVER = math.inf


def test_the_minimum_over_the_workflows_of_a_client_counts() -> None:
    index = StepsIndex()
    assert index.update("c", "w1", {"a": 3, "b": 2}) == {"a": 3, "b": 2}
    assert index.update("c", "w2", {"a": 1, "b": 5}) == {"a": 1}
    assert (index.agent_steps("c", "a"), index.agent_steps("c", "b")) == (1, 2)
    assert index.update("c", "w2", {"a": 4, "b": 1}) == {"a": 3, "b": 1}
    assert index.remove("c", "w2") == {"b": 2}
    assert index.remove("c", "w1") == {"a": NEVER, "b": NEVER}
    assert len(index) == 0


def test_clients_are_kept_apart() -> None:
    index = StepsIndex()
    index.update("c1", "w", {"a": 3})
    assert index.update("c2", "w", {"a": 1}) == {"a": 1}
    assert index.agent_steps("c1", "a") == 3
    assert len(index) == 2
    assert index.remove("c2", "w") == {"a": NEVER}
    assert index.agent_steps("c1", "a") == 3


def test_what_is_not_known_is_infinite() -> None:
    index = StepsIndex()
    assert index.agent_steps("c", "a") == NEVER
    assert index.workflow_steps("c", "w", "a") == NEVER
    assert index.remove("c", "w") == {}
    index.update("c", "w", {"a": 3})
    assert index.agent_steps("c", "x") == NEVER
    assert index.workflow_steps("c", "w", "x") == NEVER
    assert index.workflow_steps("c", "x", "a") == NEVER
    assert index.remove("c", "x") == {}


def test_an_infinite_minimum_is_reported_only_when_it_was_finite() -> None:
    index = StepsIndex()
    assert index.update("c", "w", {"a": NEVER, "b": 0}) == {"b": 0}
    assert index.update("c", "w", {"a": NEVER, "b": NEVER}) == {"b": NEVER}
    assert index.remove("c", "w") == {}


def test_a_workflow_may_come_back_with_other_agents() -> None:
    index = StepsIndex()
    index.update("c", "w1", {"a": 1, "b": 2})
    index.update("c", "w2", {"b": 3})
    assert index.update("c", "w1", {"b": 2, "d": 7}) == {"a": NEVER, "d": 7}
    assert index.workflow_steps("c", "w1", "a") == NEVER
    assert index.workflow_steps("c", "w1", "d") == 7
    assert index.update("c", "w1", {"d": 7, "b": 2}) == {}


def test_clear_forgets_everything() -> None:
    index = StepsIndex()
    index.update("c", "w", {"a": 1})
    index.clear()
    assert len(index) == 0
    assert index.agent_steps("c", "a") == NEVER


def test_an_update_keeps_no_reference_to_the_mapping() -> None:
    index = StepsIndex()
    steps: dict[str, float] = {"a": 1, "b": 2}
    index.update("c", "w", steps)
    steps["a"] = 9
    assert index.workflow_steps("c", "w", "a") == 1
    assert index.update("c", "w", steps) == {"a": 9}


def test_an_update_from_a_state_equals_one_from_its_dict() -> None:
    by_state, by_dict = StepsIndex(), StepsIndex()
    state = WorkflowState(graph("a b c", "a>b b>c c>a"))
    for event in ("", "+a", "-a", "+b", "-b", "+c", "+c", "-c", "-c"):
        play(state, event)
        changed = by_state.update_state("c", "w", state)
        assert changed == by_dict.update("c", "w", state.steps_to_execution())
        assert by_state.update_state("c", "w", state) == {}
        for agent_id, steps in state.steps_to_execution().items():
            assert by_state.agent_steps("c", agent_id) == steps
            assert by_state.workflow_steps("c", "w", agent_id) == steps
    assert by_state.update("c", "w", state.steps_to_execution()) == {}


def test_an_agent_whose_minimum_another_workflow_shares_has_not_changed() -> None:
    index = StepsIndex()
    index.update("c", "w1", {"a": 1})
    index.update("c", "w2", {"a": 1})
    assert index.update("c", "w1", {"a": 2}) == {}
    assert index.update("c", "w2", {"a": 3}) == {"a": 2}


def test_nothing_is_left_of_removed_workflows() -> None:
    index = StepsIndex()
    index.update("c", "w1", {"a": 1, "b": 2})
    for other in ({"b": 2, "a": 1}, {"b": 3, "d": 1}, {"a": 1, "b": 2}):
        index.update("c", "w2", other)
    index.remove("c", "w2")
    client = index._clients["c"]
    assert set(client.agents) == {"a", "b"}
    assert set(client.layouts) == {("a", "b")}
    index.remove("c", "w1")
    assert not index._clients


STEPS = st.sampled_from([0, 1, 2, 3, 70_000, NEVER])


class IndexMachine(RuleBasedStateMachine):
    """Updates, removals and expiry in any order, against the minimum over a plain dict."""

    @initialize()
    def begin(self) -> None:
        self.index = StepsIndex()
        self.model: dict[tuple[str, str], dict[str, float]] = {}

    @rule(
        client_id=st.sampled_from("CD"),
        workflow_id=st.sampled_from("uvwxyz"),
        steps=st.one_of(
            st.fixed_dictionaries({"a": STEPS, "b": STEPS, "c": STEPS}),
            st.dictionaries(st.sampled_from("abcd"), STEPS),
        ),
    )
    def update(self, client_id: str, workflow_id: str, steps: dict[str, float]) -> None:
        before = self.minima(client_id)
        changed = self.index.update(client_id, workflow_id, steps)
        self.model[client_id, workflow_id] = steps
        self.check_changed(client_id, before, changed)

    @rule(client_id=st.sampled_from("CD"), workflow_id=st.sampled_from("uvwxyz"))
    def remove(self, client_id: str, workflow_id: str) -> None:
        before = self.minima(client_id)
        changed = self.index.remove(client_id, workflow_id)
        self.model.pop((client_id, workflow_id), None)
        self.check_changed(client_id, before, changed)

    def minima(self, client_id: str) -> dict[str, float]:
        return {
            agent_id: min(
                (
                    steps.get(agent_id, NEVER)
                    for (owner, _), steps in self.model.items()
                    if owner == client_id
                ),
                default=NEVER,
            )
            for agent_id in "abcd"
        }

    def check_changed(
        self, client_id: str, before: dict[str, float], changed: dict[str, float]
    ) -> None:
        after = self.minima(client_id)
        assert changed == {a: value for a, value in after.items() if value != before[a]}

    @invariant()
    def agrees(self) -> None:
        assert len(self.index) == len(self.model)
        for client_id in "CD":
            for agent_id, value in self.minima(client_id).items():
                assert self.index.agent_steps(client_id, agent_id) == value
        for (client_id, workflow_id), steps in self.model.items():
            for agent_id in "abcd":
                value = self.index.workflow_steps(client_id, workflow_id, agent_id)
                assert value == steps.get(agent_id, NEVER)


TestIndexMachine = IndexMachine.TestCase
TestIndexMachine.settings = settings(max_examples=150, stateful_step_count=40)
