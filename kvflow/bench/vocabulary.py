"""Token ids for pieces of prompts: random, but the same for the same piece."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

from kvflow.errors import EnvironmentProblemError
from kvflow.workload import Piece

__all__ = ["TokenVocabulary", "read_vocabulary"]

_SPECIAL_ID_NAMES: Final = ("bos_token_id", "eos_token_id", "pad_token_id", "unk_token_id")


class TokenVocabulary:
    """Ids that stand for ordinary tokens of a model.

    Args:
        size: of the model's vocabulary.
        special: ids that mean something to the model or the engine, such as the end of a text.
        seed: another seed gives other ids.
    """

    def __init__(self, size: int, special: Iterable[int] = (), seed: int = 0) -> None:
        excluded = set(special)
        self._ids = tuple(number for number in range(size) if number not in excluded)
        self._seed = seed

    def ids(self, piece: Piece) -> list[int]:
        """The piece's tokens. Pieces with different keys begin alike by chance only."""
        drawn = random.Random(f"{self._seed} {piece.key}")
        return drawn.choices(self._ids, k=piece.tokens)


def read_vocabulary(model_path: str, seed: int) -> TokenVocabulary:
    """The vocabulary of a checkpoint: a folder, or a Hugging Face id that was downloaded.

    Raises:
        EnvironmentProblemError: it has no ``config.json`` that says how large it is.
    """
    config = _read_json(model_path, "config.json")
    # A model that takes more than text has its language model's configuration inside.
    text_config = config.get("text_config") or config
    size = text_config.get("vocab_size")
    if not isinstance(size, int):
        raise EnvironmentProblemError(
            f"the model {model_path} does not say how large its vocabulary is",
            "name a checkpoint whose config.json has vocab_size",
        )
    return TokenVocabulary(size, _special_ids(model_path, [config, text_config]), seed)


def _special_ids(model_path: str, configs: Iterable[Mapping[str, Any]]) -> set[int]:
    found: set[int] = set()
    generation = _read_json(model_path, "generation_config.json")
    for config in (*configs, generation):
        for name in _SPECIAL_ID_NAMES:
            value = config.get(name)
            found.update(value if isinstance(value, list) else [value] if value is not None else [])
    tokenizer = _read_json(model_path, "tokenizer.json")
    found.update(token["id"] for token in tokenizer.get("added_tokens") or ())
    settings = _read_json(model_path, "tokenizer_config.json")
    found.update(int(number) for number in settings.get("added_tokens_decoder") or ())
    return found


def _read_json(model_path: str, name: str) -> dict[str, Any]:
    """A file of the checkpoint; empty if there is none."""
    file: Path | None = Path(model_path, name)
    if not Path(model_path).is_dir():
        file = _downloaded(model_path, name)
    if file is None or not file.is_file():
        return {}
    content: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return content


def _downloaded(model_id: str, name: str) -> Path | None:
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(model_id, name)
    return Path(found) if isinstance(found, str) else None
