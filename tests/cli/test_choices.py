from __future__ import annotations

import pytest

from kvflow.cli.choices import one_of
from kvflow.errors import InvalidInputError


def test_a_known_word_is_taken() -> None:
    assert one_of("--order", "time", ("steps", "time")) == "time"


def test_another_is_refused_with_the_option_and_all_words() -> None:
    with pytest.raises(InvalidInputError) as caught:
        one_of("--device", "gpu", ("auto", "cpu", "cuda"))
    assert caught.value.field == ("--device",)
    assert caught.value.problem == "'gpu' is unknown; use auto, cpu or cuda"
