from hypothesis import given
from hypothesis import strategies as st

from kvflow.graph.learning.history import CallHistory


class Run:
    def __init__(self, agent_id: str, started_at: int) -> None:
        self.agent_id = agent_id
        self.started_at = started_at
        self.finished_at: int | None = None


def directly_before(runs: list[Run], at: int) -> set[str]:
    """By definition: finished, and no other run lies wholly between."""
    over = [run for run in runs if run.finished_at is not None and run.finished_at < at]
    return {
        run.agent_id
        for run in over
        if not any((run.finished_at or 0) < other.started_at for other in over)
    }


@given(st.lists(st.tuples(st.sampled_from("abcd"), st.booleans(), st.integers(0, 9)), max_size=40))
def test_predecessors_are_those_of_the_definition(choices: list[tuple[str, bool, int]]) -> None:
    history, runs = CallHistory(), list[Run]()
    places: dict[int, int] = {}
    for at, (agent_id, starts, pick) in enumerate(choices):
        running = [run for run in runs if run.finished_at is None]
        if starts or not running:
            place, predecessors = history.start(agent_id)
            assert predecessors == directly_before(runs, at)
            run = Run(agent_id, at)
            places[id(run)] = place
            runs.append(run)
        else:
            run = running[pick % len(running)]
            run.finished_at = at
            history.finish(run.agent_id, places[id(run)])
    assert {one.agent_id for one in history.frontier} == directly_before(runs, len(choices))


def test_each_finish_is_passed_once_with_what_followed_it() -> None:
    history = CallHistory()
    plan, _ = history.start("plan")
    assert history.finish("plan", plan) == []
    first, _ = history.start("work")
    second, _ = history.start("check")
    passed = history.finish("check", second)
    assert [(one.agent_id, one.followers) for one in passed] == [("plan", {"work", "check"})]
    assert history.finish("work", first) == []
    assert [(one.agent_id, one.followers) for one in history.end()] == [
        ("check", set()),
        ("work", set()),
    ]
    assert history.end() == []


def test_a_copy_goes_its_own_way() -> None:
    history = CallHistory()
    place, _ = history.start("a")
    history.finish("a", place)
    twin = history.copy()
    twin.start("b")
    assert history.frontier[0].followers == set()
    assert twin.frontier[0].followers == {"b"}
