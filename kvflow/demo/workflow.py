"""The workflow itself: ten agents in a cycle, as a user of KVFlow's SDK would write it."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from kvflow.agent_sdk import Workflow
from kvflow.demo.calls import Answer, ask
from kvflow.demo.team import REQUESTS, TEAM, Role, user_message

if TYPE_CHECKING:
    from openai import OpenAI

__all__ = ["MAX_OUTPUT_TOKENS", "CallRecord", "make_agents", "run_rounds", "team_workflow"]

MAX_OUTPUT_TOKENS: Final = 8

AgentFunction = Callable[[str, Role | None, str], Answer]


@dataclass(frozen=True, slots=True)
class CallRecord:
    """One step of the workflow. Rounds count from 1; ``started_s`` from the first call on."""

    round: int
    agent_id: str
    started_s: float
    answer: Answer


def team_workflow(service_url: str, engine_url: str) -> Workflow:
    """The workflow as KVFlow knows it, still without agents."""
    return Workflow("mooring-team", service_url=service_url, engine_urls=[engine_url])


def make_agents(client: OpenAI, workflow: Workflow | None) -> Mapping[str, AgentFunction]:
    """One function per agent, in order; with a workflow, its steps are reported to KVFlow.

    Without one the functions are plain Python, and nothing of KVFlow takes part.
    """
    agents: dict[str, AgentFunction] = {}
    for position, role in enumerate(TEAM):
        function = _agent_function(client, role)
        if workflow is not None:
            # The same as @workflow.agent("planner", after="release_manager", entry=True) above it.
            decorate = workflow.agent(
                role.agent_id, after=TEAM[position - 1].agent_id, entry=position == 0
            )
            function = decorate(function)
        agents[role.agent_id] = function
    return agents


def run_rounds(
    agents: Mapping[str, AgentFunction],
    rounds: int,
    on_call: Callable[[CallRecord], None] = lambda _record: None,
) -> list[CallRecord]:
    """Let the team work on one request a round, each agent hearing from the one before it.

    Returns:
        The calls in the order they were made.
    """
    records: list[CallRecord] = []
    origin_s = time.perf_counter()
    for number, request in enumerate(_requests(rounds), start=1):
        previous: Role | None = None
        handover = ""
        for role in TEAM:
            started_s = time.perf_counter() - origin_s
            answer = agents[role.agent_id](request, previous, handover)
            previous, handover = role, answer.text.strip()
            records.append(CallRecord(number, role.agent_id, started_s, answer))
            on_call(records[-1])
    return records


def _agent_function(client: OpenAI, role: Role) -> AgentFunction:
    def work_on(request: str, handed_over_by: Role | None, handover: str) -> Answer:
        messages = [
            {"role": "system", "content": role.system_prompt},
            {"role": "user", "content": user_message(role, request, handed_over_by, handover)},
        ]
        return ask(client, messages, MAX_OUTPUT_TOKENS)

    return work_on


def _requests(rounds: int) -> Sequence[str]:
    return REQUESTS[:rounds]
