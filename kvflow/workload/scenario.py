"""A scenario file: a workload in words, and the cache it runs on. TOML."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from kvflow.errors import InvalidInputError

__all__ = [
    "CacheSizes",
    "DeclaredGraph",
    "Hints",
    "Load",
    "Pattern",
    "Prompts",
    "Scenario",
    "load_scenario",
    "parse_scenario",
]

Count = Annotated[int, Field(ge=1)]
Tokens = Annotated[int, Field(ge=0)]
Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1)]

Pattern = Literal["sequence", "branch", "fan_out", "loop", "random"]
"""How the agents of one workflow follow each other.

* ``sequence``: one after the other, in a cycle where there are several rounds;
* ``branch``: stages of ``branches`` alternatives each, of which one runs;
* ``fan_out``: a planner, ``branches`` workers side by side, a joiner, again and again;
* ``loop``: one after the other, and each goes back to the one before with ``loop_probability``;
* ``random``: any of an agent's up to ``branches`` successors, drawn with unequal probabilities.
"""

DeclaredGraph = Literal["right", "reversed", "shuffled", "none"]
"""The graph that is declared: the right one, one that says something else, or none."""


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Prompts(_Section):
    """Lengths, in tokens. ``shared_tokens`` are the first of the fixed ones, the same for all."""

    kind: Literal["tokens", "text"] = "tokens"
    fixed_tokens: Count | tuple[Count, Count] = 600
    """One length, or the least and the most of an even spread over the agents."""
    shared_tokens: Tokens = 0
    dynamic_tokens: Count = 32
    output_tokens: Count = 8
    chat: bool = False
    """Each agent's prompt begins with its last prompt and answer in the same workflow."""


class Agents(_Section):
    """The agents of one workflow and the order they run in."""

    pattern: Pattern = "sequence"
    agents: Count = 10
    rounds: Count = 3
    """How often a workflow goes through its agents (``random``: calls over agents)."""
    branches: Count = 1
    loop_probability: Share = 0.3
    pause_s: Seconds = 0.0
    """Mean time between a call's end and the next call: a tool. Exponential."""


class Load(_Section):
    """How many workflows there are and when they begin."""

    workflows: Count = 1
    concurrency: Count | None = 1
    rate_per_s: Annotated[float, Field(gt=0)] | None = None
    """Poisson arrivals; then ``concurrency`` has to be left out."""
    clients: Count = 1
    teams: Count = 1
    """Different sets of agents; each workflow takes one of them."""
    zipf: Annotated[float, Field(ge=0)] = 0.0
    """Exponent of the teams' popularity; 0: all the same."""

    @model_validator(mode="before")
    @classmethod
    def _open_or_closed(cls, given: Any) -> Any:
        if isinstance(given, dict) and given.get("rate_per_s") is not None:
            if given.get("concurrency") is not None:
                raise ValueError("give rate_per_s (open loop) or concurrency (closed loop)")
            return {**given, "concurrency": None}
        return given


class Hints(_Section):
    """What is declared to KVFlow, beside what happens."""

    graph: DeclaredGraph = "right"
    wrong: Share = 0.0
    """Share of the transitions that go to an agent the declared graph does not lead to."""


class CacheSizes(_Section):
    """Sizes of the tiers, in tokens."""

    device_tokens: Count
    host_tokens: Tokens = 0
    storage: bool = False
    page_tokens: Count = 16


class Scenario(_Section):
    """A workload and the cache it runs on. ``seed`` decides all that is drawn."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]*$")]
    description: str = ""
    seed: int = 0
    prompts: Prompts = Prompts()
    agents: Agents = Agents()
    load: Load = Load()
    hints: Hints = Hints()
    cache: CacheSizes
    warm_up_rounds: Annotated[int, Field(ge=0)] = 1
    """Rounds of the first workflow that fill the cache and are not counted."""
    trace: str | None = None
    """A trace file (JSONL) to replay in place of ``agents`` and ``load``; relative to the scenario
    file."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        fixed = self.prompts.fixed_tokens
        least = fixed if isinstance(fixed, int) else min(fixed)
        if self.prompts.shared_tokens > least:
            raise ValueError(
                f"prompts.shared_tokens: {self.prompts.shared_tokens} is more than the shortest "
                f"fixed prefix ({least}), which it is a part of"
            )
        return self


def load_scenario(path: Path) -> Scenario:
    """Read a scenario file.

    Raises:
        InvalidInputError: it cannot be read, is not TOML, or a value in it is wrong.
    """
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InvalidInputError([str(path)], f"cannot be read: {error.strerror}") from error
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise InvalidInputError([str(path)], f"is not TOML: {error}") from error
    return parse_scenario(data)


def parse_scenario(data: dict[str, Any]) -> Scenario:
    """Check a scenario.

    Raises:
        InvalidInputError: names the first field that is wrong.
    """
    try:
        return Scenario.model_validate(data)
    except ValidationError as error:
        first = error.errors()[0]
        raise InvalidInputError(first["loc"] or ["scenario"], first["msg"]) from error
