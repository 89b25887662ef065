"""Cost models to JSON and back."""

import json
from pathlib import Path

import pytest

from kvflow.errors import InvalidInputError
from kvflow.simulator.cost_files import cost_model_from, read_cost_model, written_cost_model
from kvflow.simulator.presets import cost_model

COSTS = cost_model("h100", "llama-3.1-8b")


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    path = tmp_path / "costs.json"
    for document in (written_cost_model(COSTS), {"costs": written_cost_model(COSTS), "raw": []}):
        path.write_text(json.dumps(document))
        assert read_cost_model(path) == COSTS


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"decode_step_s": -1}, "decode_step_s"),
        ({"load": {"tokens_per_s": 0}}, "load.tokens_per_s"),
        ({"speed": 1}, "speed"),
    ],
)
def test_a_wrong_value_is_named(change: dict[str, object], field: str) -> None:
    with pytest.raises(InvalidInputError) as caught:
        cost_model_from({**written_cost_model(COSTS), **change})
    assert ".".join(map(str, caught.value.field)) == field


@pytest.mark.parametrize("text", ["{", "[1]"])
def test_a_file_that_is_none_is_named(tmp_path: Path, text: str) -> None:
    path = tmp_path / "costs.json"
    path.write_text(text)
    with pytest.raises(InvalidInputError, match=r"costs\.json"):
        read_cost_model(path)
    with pytest.raises(InvalidInputError, match=r"cannot be read"):
        read_cost_model(tmp_path / "none.json")
