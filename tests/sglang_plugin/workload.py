"""A small ring of agents with text of their own, driven against a real engine."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache
from typing import Any

from kvflow.engine import resolve_model
from kvflow.eviction import CachedCall, clairvoyant_hit_tokens
from tests.engines import Answer, Caller, RunningEngine, words

PAGE_SIZE = 16


@cache
def tokenizer() -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(resolve_model("smollm2"))


def token_ids(messages: list[dict[str, str]]) -> list[int]:
    """The prompt as the engine sees it."""
    encoded = tokenizer().apply_chat_template(
        messages, add_generation_prompt=True, return_dict=True, tokenize=True
    )
    return list(encoded["input_ids"])


@dataclass
class Ring:
    """``agents`` agents that run one after the other, round after round."""

    agents: int = 5
    prefix_words: int = 320
    question_words: int = 20
    max_tokens: int = 8
    workflow_id: str = "ring"
    calls: list[CachedCall] = field(default_factory=list)

    def messages(self, agent: int, round_number: int) -> list[dict[str, str]]:
        return [
            {"role": "system", "content": " ".join(words(f"agent {agent}", self.prefix_words))},
            {
                "role": "user",
                "content": " ".join(words(f"{agent} asks {round_number}", self.question_words)),
            },
        ]

    def steps(self, running: int) -> dict[str, int]:
        return {f"a{n}": (n - running) % self.agents for n in range(self.agents)}

    def round(
        self, engine: RunningEngine, round_number: int, *, in_band: bool = True, **body: Any
    ) -> list[Answer]:
        """Call every agent once, in order."""
        answers = []
        for agent in range(self.agents):
            params: dict[str, Any] = {
                "kvflow": {"workflow_id": self.workflow_id, "agent_id": f"a{agent}"}
            }
            if in_band:
                params["kvflow_steps"] = self.steps(agent)
            answers.append(self.call(engine, agent, round_number, custom_params=params, **body))
        return answers

    def call(self, caller: Caller, agent: int, round_number: int, **request: Any) -> Answer:
        """Call one agent; ``request`` goes to ``Caller.chat``."""
        messages = self.messages(agent, round_number)
        answer = caller.chat(messages, max_tokens=self.max_tokens, **request)
        # The last token generated has no KV.
        generated = [-1] * (answer.body["usage"]["completion_tokens"] - 1)
        self.calls.append(CachedCall(token_ids(messages), generated))
        return answer

    def best_hit_tokens(self, capacity_tokens: int) -> list[int]:
        """What the best policy could have hit, per call made so far."""
        return clairvoyant_hit_tokens(self.calls, capacity_tokens, PAGE_SIZE)


def hit_rate(answers: list[Answer]) -> float:
    return sum(a.cached_tokens for a in answers) / sum(a.prompt_tokens for a in answers)
