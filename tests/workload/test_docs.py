"""docs/workloads.md says what the code does."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path

from pydantic import BaseModel

from kvflow.workload import (
    Scenario,
    build_workload,
    parse_scenario,
    read_trace,
    shipped_scenarios,
)
from kvflow.workload.converters import FORMATS
from kvflow.workload.converters.defaults import DYNAMIC_TOKENS, FIXED_TOKENS, OUTPUT_TOKENS

DOC = (Path(__file__).parents[2] / "docs" / "workloads.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", DOC, re.MULTILINE | re.DOTALL)


def fields(model: type[BaseModel]) -> list[str]:
    found = []
    for name, info in model.model_fields.items():
        section = info.annotation
        if isinstance(section, type) and issubclass(section, BaseModel):
            found += [f"**`[{name}]`**", *fields(section)]
        else:
            found.append(f"`{name}`")
    return found


def test_every_field_scenario_and_format_is_described() -> None:
    for name in fields(Scenario):
        assert f"\n| {name} |" in DOC
    for name in (*shipped_scenarios(), *FORMATS):
        assert f"\n| `{name}` |" in DOC


def test_the_scenario() -> None:
    (text,) = blocks("toml")
    workload = build_workload(parse_scenario(tomllib.loads(text)))
    assert len(list(workload.workflows())) == 4


def test_the_trace(tmp_path: Path) -> None:
    header, workflow = map(json.loads, blocks("json"))
    path = tmp_path / "trace.jsonl"
    path.write_text(f"{json.dumps(header)}\n{json.dumps(workflow)}\n")
    (read,) = read_trace(path).workflows()
    assert [call.prompt_tokens for call in read.calls] == [632, 400]


def test_the_defaults() -> None:
    words = " ".join(DOC.split())
    assert (
        f"{FIXED_TOKENS} tokens are taken for the prefix, {DYNAMIC_TOKENS} for the rest, and "
        f"{OUTPUT_TOKENS} for the answer" in words
    )
