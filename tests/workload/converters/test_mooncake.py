"""The lines are made by hand, after the two that the README of the published traces shows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from kvflow.errors import InvalidInputError
from kvflow.workload.converters import convert

FIRST = {
    "timestamp": 27482,
    "input_length": 6955,
    "output_length": 52,
    "hash_ids": [46, 47, 48, 49, 50, 51, 52, 53, 54, 55, 56, 57, 2353, 2354],
}
SECOND = {
    "timestamp": 30535,
    "input_length": 6472,
    "output_length": 26,
    "hash_ids": [46, 47, 48, 49, 50, 51, 52, 53, 54, 55, 56, 57, 2366],
}


def lines(path: Path, *requests: Any) -> Path:
    path.write_text("".join(json.dumps(request) + "\n" for request in requests))
    return path


def test_requests_share_the_blocks_they_begin_with(tmp_path: Path) -> None:
    first, second = convert(lines(tmp_path / "t", FIRST, SECOND), "mooncake")
    assert (first.arrival_s, second.arrival_s) == (27.482, 30.535)
    assert first.graph is None
    (call,), (other,) = first.calls, second.calls
    assert (call.prompt_tokens, call.answer.tokens) == (6955, 52)
    assert (other.prompt_tokens, other.answer.tokens) == (6472, 26)
    shared = [a for a, b in zip(call.prompt, other.prompt, strict=False) if a == b]
    assert sum(piece.tokens for piece in shared) == 12 * 512
    assert call.answer.key != other.answer.key


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"hash_ids": [46]}, "line 2.hash_ids: has 1 ids; 6472 tokens are 13 blocks of 512"),
        ({"timestamp": 0}, "line 2.timestamp: is 0.0, before the 27482.0 above"),
        ({"input_length": None}, "line 2.input_length: "),
    ],
)
def test_errors_name_line_and_field(tmp_path: Path, changes: Any, words: str) -> None:
    with pytest.raises(InvalidInputError) as caught:
        list(convert(lines(tmp_path / "t", FIRST, SECOND | changes), "mooncake"))
    assert words in str(caught.value)


def test_an_empty_file(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="has no call in it"):
        list(convert(lines(tmp_path / "t"), "mooncake"))


def test_an_unknown_format(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match=r"'csv' is unknown; use one of mooncake, otel, "):
        convert(tmp_path, "csv")  # type: ignore[arg-type]
