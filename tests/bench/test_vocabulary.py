from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from kvflow.bench.vocabulary import TokenVocabulary, read_vocabulary
from kvflow.errors import EnvironmentProblemError
from kvflow.workload import Piece


def checkpoint(folder: Path, **files: dict[str, Any]) -> str:
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return str(folder)


def test_a_piece_is_the_same_each_time_and_others_are_others() -> None:
    vocabulary = TokenVocabulary(50_000, seed=1)
    assert vocabulary.ids(Piece("a", 40)) == TokenVocabulary(50_000, seed=1).ids(Piece("a", 40))
    assert len(vocabulary.ids(Piece("a", 40))) == 40
    others = [vocabulary.ids(Piece("b", 40)), TokenVocabulary(50_000, seed=2).ids(Piece("a", 40))]
    assert all(ids[:8] != vocabulary.ids(Piece("a", 40))[:8] for ids in others)


def test_special_tokens_never_come(tmp_path: Path) -> None:
    path = checkpoint(
        tmp_path,
        config={"vocab_size": 20, "eos_token_id": [1, 2], "pad_token_id": None},
        generation_config={"bos_token_id": 3},
        tokenizer={"added_tokens": [{"id": 4}, {"id": 5}]},
        tokenizer_config={"added_tokens_decoder": {"6": {}}},
    )
    ids = read_vocabulary(path, 0).ids(Piece("long", 2000))
    assert set(ids) == {0, *range(7, 20)}


def test_a_vocabulary_may_be_that_of_the_language_model_inside(tmp_path: Path) -> None:
    path = checkpoint(tmp_path, config={"text_config": {"vocab_size": 5, "bos_token_id": 0}})
    assert set(read_vocabulary(path, 0).ids(Piece("x", 500))) == {1, 2, 3, 4}


def test_a_checkpoint_without_a_vocabulary_is_refused(tmp_path: Path) -> None:
    with pytest.raises(EnvironmentProblemError, match="vocabulary"):
        read_vocabulary(checkpoint(tmp_path, config={}), 0)
