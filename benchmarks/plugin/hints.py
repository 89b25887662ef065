"""What the plugin does with hints: learning from calls, and messages that weigh nodes anew."""

from __future__ import annotations

import random
import time
from array import array
from typing import Any, Final

from benchmarks.plugin.requests import Tree, build_tree
from benchmarks.plugin.samples import summary
from benchmarks.plugin.trees import quiet_collector
from kvflow.eviction import AgentCall, CallLearner
from kvflow.sglang_plugin.control import ServiceUpdate, WorkflowUpdate

__all__ = ["live_update", "measure_learning", "measure_updates", "own_leaves"]

CLIENT: Final = "benchmark"
PREFIX_TOKENS: Final = 4
FRESH_TOKENS: Final = 64
ANSWER_TOKENS: Final = 32
CALLS_PER_WORKFLOW: Final = 10
_VOCABULARY: Final = 128_000


def measure_learning(prompt_tokens: int, samples: int, seed: int) -> dict[str, Any]:
    """``CallLearner.observe`` for an agent whose prompts share all but their end."""
    rng = random.Random(seed)
    learner = CallLearner()
    fixed = rng.choices(range(_VOCABULARY), k=prompt_tokens - FRESH_TOKENS)
    taken_us = []
    with quiet_collector():
        for number in range(samples):
            call = AgentCall(
                agent=(CLIENT, "a"),
                workflow=(CLIENT, f"w{number // CALLS_PER_WORKFLOW}"),
                prompt=array("q", fixed + rng.choices(range(_VOCABULARY), k=FRESH_TOKENS)),
                answer=array("q", rng.choices(range(_VOCABULARY), k=ANSWER_TOKENS)),
            )
            begun_s = time.perf_counter()
            learner.observe(call)
            taken_us.append((time.perf_counter() - begun_s) * 1e6)
    return {"prompt_tokens": prompt_tokens, "us": summary(taken_us)}


def measure_updates(workflows: int, agents: int, samples: int) -> dict[str, Any]:
    """A message with new steps of every agent of every workflow, and one with one workflow's.

    Each agent is one workflow's alone and owns a leaf, so all of the message weighs something anew.
    """
    tree = build_tree("kvflow", 1, workflows * agents * PREFIX_TOKENS + 16, 16)
    own_leaves(tree, workflows, agents)
    turns = [0] * workflows
    all_us: list[float] = []
    one_us: list[float] = []
    with quiet_collector():
        for number in range(samples):
            for these, taken_us in ((range(workflows), all_us), ((number % workflows,), one_us)):
                for workflow in these:
                    turns[workflow] += 1
                updates = tuple(_update(w, agents, turns[w]) for w in these)
                begun_s = time.perf_counter()
                tree.cache.apply_control(ServiceUpdate(workflows=updates))
                taken_us.append((time.perf_counter() - begun_s) * 1e6)
    return {
        "workflows": workflows,
        "agents": agents,
        "all_us": summary(all_us),
        "one_us": summary(one_us),
    }


def live_update(workflows: int, agents: int) -> ServiceUpdate:
    """Steps of all agents that ``own_leaves`` made."""
    return ServiceUpdate(workflows=tuple(_update(w, agents, 0) for w in range(workflows)))


def own_leaves(tree: Tree, workflows: int, agents: int) -> None:
    """Put a leaf for each agent into the tree."""
    for number in range(workflows * agents):
        path = range(number * PREFIX_TOKENS, (number + 1) * PREFIX_TOKENS)
        tree.insert(path)
        tree.own(CLIENT, _agent(*divmod(number, agents)), path)


def _update(workflow: int, agents: int, turn: int) -> WorkflowUpdate:
    """Each agent is one step nearer than it was; what is said to come next does."""
    steps = {_agent(workflow, agent): float((agent - turn) % agents) for agent in range(agents)}
    return WorkflowUpdate((CLIENT, f"w{workflow}"), turn, steps, {})


def _agent(workflow: int, agent: int) -> str:
    return f"w{workflow}a{agent}"
