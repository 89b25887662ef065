"""Files of JSON lines, read one at a time, with errors that name file, line and field."""

from __future__ import annotations

import json
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from kvflow.errors import InvalidInputError

__all__ = ["first_problem", "json_objects", "parse_line", "place", "text_lines"]

Model = TypeVar("Model", bound=BaseModel)


def text_lines(path: Path) -> Generator[tuple[int, str]]:
    """Yield number and text of each line that is not blank. The first has number 1.

    Raises:
        InvalidInputError: the file cannot be read.
    """
    try:
        with path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, start=1):
                if not line.isspace():
                    yield number, line
    except OSError as error:
        raise InvalidInputError([str(path)], f"cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise InvalidInputError([str(path)], f"is not UTF-8 text: {error}") from error


def json_objects(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield number and content of each line.

    Raises:
        InvalidInputError: the file cannot be read, or a line is not a JSON object.
    """
    for number, line in text_lines(path):
        try:
            content = json.loads(line)
        except ValueError as error:
            raise InvalidInputError([place(path, number)], f"is not JSON: {error}") from error
        if not isinstance(content, dict):
            raise InvalidInputError([place(path, number)], "is not a JSON object: {...}")
        yield number, content


def parse_line(model: type[Model], path: Path, number: int, line: str) -> Model:
    """Check one line.

    Raises:
        InvalidInputError: names the first field that is wrong.
    """
    try:
        return model.model_validate_json(line)
    except ValidationError as error:
        field, problem = first_problem(error)
        raise InvalidInputError([place(path, number), *field], problem) from error


def place(path: Path, number: int) -> str:
    """What an error calls a line."""
    return f"{path} line {number}"


def first_problem(error: ValidationError) -> tuple[tuple[str | int, ...], str]:
    """Return the first wrong field, and what is wrong with it."""
    first = error.errors(include_url=False)[0]
    return first["loc"], first["msg"].removeprefix("Value error, ")
