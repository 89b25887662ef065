from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from kvflow.errors import InvalidInputError
from kvflow.workload import build_workload, find_scenario, load_scenario, shipped_scenarios
from tests.workload.scenarios import scenario


def test_what_ships() -> None:
    assert {
        *("ring", "ring-hicache", "branch", "fan-out", "loop", "chat", "peer", "tool-pauses"),
        *("many-tenants", "zipf", "mispredicted", "adversarial"),
    } <= set(shipped_scenarios())


@pytest.mark.parametrize("name", shipped_scenarios())
def test_a_scenario_that_ships_runs_on_a_small_machine(name: str) -> None:
    shipped = load_scenario(find_scenario(name))
    assert shipped.name == name
    assert shipped.description.endswith(".")
    workload = build_workload(shipped)
    calls = [call for workflow in workload.workflows() for call in workflow.calls]
    assert 0 < workload.warm_up_calls < len(calls) <= 100
    assert sum(call.prompt_tokens for call in calls) < 60_000
    # A call has to fit, and all the prefixes must not, or there is nothing to evict.
    longest = max(call.prompt_tokens + call.answer.tokens for call in calls)
    assert longest * 2 <= min(shipped.cache.device_tokens, 4096)
    prefixes = {piece for call in calls for piece in call.prompt[: call.fixed_pieces]}
    histories = shipped.prompts.chat * sum(call.answer.tokens + 48 for call in calls)
    assert sum(piece.tokens for piece in prefixes) + histories > shipped.cache.device_tokens * 0.9


def test_a_scenario_by_path(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text('name = "mine"\n[cache]\ndevice_tokens = 1000\n')
    assert load_scenario(find_scenario(str(path))).cache.device_tokens == 1000


def test_a_scenario_that_is_not_there() -> None:
    with pytest.raises(InvalidInputError, match=r"is no scenario file, .* ship: adversarial, "):
        find_scenario("rign")


@pytest.mark.parametrize(
    ("sections", "words"),
    [
        ({"load": {"concurrency": 2, "rate_per_s": 1.0}}, "load: give rate_per_s"),
        ({"load": {"workflow": 2}}, "load.workflow: Extra inputs"),
        ({"agents": {"pattern": "ring"}}, "agents.pattern: Input should be 'sequence'"),
        ({"prompts": {"shared_tokens": 601}}, "prompts.shared_tokens: 601 is more than"),
        ({"prompts": {"fixed_tokens": [700, 600]}}, "fixed_tokens"),
        ({"agents": {"rounds": 1}}, "warm_up_rounds: 1 of the only workflow's 1 rounds"),
        ({"trace": "t", "hints": {"wrong": 0.1}}, "hints.wrong: the calls of a trace"),
    ],
)
def test_errors_name_the_field(sections: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidInputError) as caught:
        scenario(**sections)
    assert words in str(caught.value)
