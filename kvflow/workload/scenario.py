"""A scenario file: a workload in words, and the cache it runs on. TOML."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from kvflow.errors import InvalidInputError
from kvflow.workload.lines import first_problem

__all__ = [
    "CacheSizes",
    "DeclaredGraph",
    "Hints",
    "Load",
    "Pattern",
    "Prompts",
    "Scenario",
    "find_scenario",
    "load_scenario",
    "parse_scenario",
    "shipped_scenarios",
]

_SHIPPED: Final = Path(__file__).parent / "scenarios"

Count = Annotated[int, Field(ge=1)]
Tokens = Annotated[int, Field(ge=0)]
Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1)]

Pattern = Literal["sequence", "branch", "fan_out", "loop", "random"]
"""How the agents of one workflow follow each other. Each is a cycle where there are several rounds.

* ``sequence``: one after the other;
* ``branch``: the first agent, then stages of ``branches`` alternatives each, of which one runs, all
  equally likely;
* ``fan_out``: a planner, ``branches`` workers side by side, a joiner, again and again; what is left
  over makes a smaller group;
* ``loop``: one after the other, and each goes back to the one before with ``loop_probability``;
* ``random``: any of an agent's up to ``branches`` successors, each half as likely as the last one.
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
    loop_probability: Annotated[float, Field(ge=0, lt=1)] = 0.3
    """With half or more a workflow may go round for long; it ends after an average of 10 calls per
    agent and round."""
    pause_s: Seconds | tuple[Seconds, Seconds] = 0.0
    """Mean time between a call's end and the next call: a tool. Exponential. One mean, or the least
    and the most of an even spread over the agents: each has its own tool before it."""

    @model_validator(mode="after")
    def _least_first(self) -> Self:
        if isinstance(self.pause_s, tuple) and self.pause_s[0] > self.pause_s[1]:
            least, most = self.pause_s
            raise ValueError(f"pause_s: {least} is more than {most}; the least first")
        return self


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
    """Rounds of the first workflow that fill the cache and are not counted. (A trace says itself
    how many of its calls do.)"""
    trace: str | None = None
    """A trace file (JSONL) to replay in place of ``agents`` and ``load``; relative to the scenario
    file."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        fixed = self.prompts.fixed_tokens
        least, most = (fixed, fixed) if isinstance(fixed, int) else fixed
        if least > most:
            raise ValueError(f"prompts.fixed_tokens: {least} is more than {most}; the least first")
        if self.prompts.shared_tokens > least:
            raise ValueError(
                f"prompts.shared_tokens: {self.prompts.shared_tokens} is more than the shortest "
                f"fixed prefix ({least}), which it is a part of"
            )
        if self.trace is not None:
            if self.hints.wrong:
                raise ValueError(
                    "hints.wrong: the calls of a trace are what they are; leave it out"
                )
        elif self.load.workflows == 1 and self.warm_up_rounds >= self.agents.rounds:
            raise ValueError(
                f"warm_up_rounds: {self.warm_up_rounds} of the only workflow's "
                f"{self.agents.rounds} rounds leave nothing to count"
            )
        return self


def shipped_scenarios() -> dict[str, Path]:
    """Return the scenario files that come with KVFlow, by name, in alphabetical order."""
    return {path.stem: path for path in sorted(_SHIPPED.glob("*.toml"))}


def find_scenario(name_or_path: str) -> Path:
    """Return the file of a scenario: one that comes with KVFlow, by name, or any other, by path.

    Raises:
        InvalidInputError: there is no such file.
    """
    shipped = shipped_scenarios()
    if name_or_path in shipped:
        return shipped[name_or_path]
    path = Path(name_or_path)
    if path.is_file():
        return path
    raise InvalidInputError(
        [name_or_path], f"is no scenario file, nor one of those that ship: {', '.join(shipped)}"
    )


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
        field, problem = first_problem(error)
        raise InvalidInputError(field or ["scenario"], problem) from error
