"""The demo's agents and their work: a product team that takes one feature request a round."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Final

__all__ = ["REQUESTS", "TEAM", "Role", "user_message"]


@dataclass(frozen=True, slots=True)
class Role:
    """An agent: its id, which also names its system prompt's file, and what it is always asked."""

    agent_id: str
    question: str

    @property
    def title(self) -> str:
        """The role as it is written in a sentence."""
        return self.agent_id.replace("_", " ")

    @property
    def system_prompt(self) -> str:
        """The fixed part of the agent's prompt, 600 to 1,000 tokens."""
        return _prompt_text(self.agent_id)


TEAM: Final = (
    Role("planner", "Which single task should be started today, and why that one?"),
    Role("researcher", "Which assumption behind this request would you check first, and where?"),
    Role("designer", "What does the skipper see first, and what does the main button say?"),
    Role("architect", "Which new fact has to be stored, and in which existing table?"),
    Role("coder", "What is the name of the first test that you write for this?"),
    Role("reviewer", "What would make you refuse this change at first sight?"),
    Role("tester", "Which journey through the program would you try to break first?"),
    Role("security", "What could a curious guest learn from this that they should not?"),
    Role("writer", "How do you announce this to harbour masters in one sentence?"),
    Role("release_manager", "Which signal tells you that this has to be taken back?"),
)

REQUESTS: Final = (
    "Skippers want to stay one more night without calling the harbour office. They would like to "
    "do it from the phone, as long as the berth is still free for the next night.",
    "Harbour masters ask for a mail at six in the morning that lists the day's arrivals and "
    "departures, and the berths that have to be cleaned before noon.",
    "A company that runs twelve harbours in three countries wants one invoice a month for all of "
    "them, with the tax shown separately for each country.",
    "Crews cancel when the weather turns. They ask for a credit instead of a refund if there was "
    "a gale warning for the harbour on the day of arrival.",
    "Staff lose the connection on the outer pontoons. They want to check boats in without it, and "
    "have everything arrive in the office as soon as they are back in range.",
    "Berths with shore power now have meters. Harbours want to charge for each kilowatt hour "
    "instead of a flat price a night, and to show the consumption on the bill.",
)


def user_message(role: Role, request: str, handed_over_by: Role | None, handover: str) -> str:
    """What an agent is asked: the request, what the colleague before said about it, a question."""
    lines = [f"Feature request: {request}"]
    if handed_over_by is not None and handover:
        lines.append(f"The {handed_over_by.title} said: {handover}")
    lines.append(role.question)
    return "\n\n".join(lines)


@cache
def _prompt_text(name: str) -> str:
    prompts = files("kvflow.demo") / "prompts"
    return (prompts / f"{name}.md").read_text(encoding="utf-8").strip()
