"""Learning, from an agent's calls, which part of its prompt will be read again.

Two things are learned, both from token ids alone:

* the *fixed prefix* of an agent: what its recent prompts have in common. After a single call that
  is held to be the prompt's first message (with a chat template that is the system prompt), or all
  of the prompt where messages cannot be told apart;
* whether an agent *continues its conversation*: whether its next prompt in a workflow begins with
  its last prompt and answer, as a chat agent's does. The paper evicts such context first; keeping
  it is what a growing chat needs.

Source: KVFlow, arXiv 2507.07400, section on the fixed-prompt boundary ("inferred as the
consistently hit prefix").
"""

from __future__ import annotations

from array import array
from collections import OrderedDict, defaultdict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import Final

__all__ = ["AgentCall", "CallLearner", "Conversation", "Lesson", "common_prefix_length"]

CALLS_PER_WINDOW: Final = 8
CONVERSATIONS_PER_AGENT: Final = 4
DEFAULT_TOKEN_BUDGET: Final = 8_000_000
MAX_REMEMBERED: Final = 131_072
"""Agents, and agents within workflows, remembered at most: what they hold beside tokens is bounded
too (an agent whose prefix is always stated holds none)."""
_MAX_CHAT_SCORE: Final = 2

_Scope = tuple[Hashable, Hashable]
"""Workflow and agent."""


@dataclass(frozen=True, slots=True)
class AgentCall:
    """A finished call of an agent.

    Attributes:
        agent: identity of the agent across workflows (client, agent, cache namespace).
        workflow: the workflow the call was made for.
        prompt: token ids of the prompt.
        answer: token ids generated.
        fixed_prefix_tokens: length of the fixed prefix where the caller states it.
        first_message_tokens: where the first message of the prompt ends, if that is known.
    """

    agent: Hashable
    workflow: Hashable
    prompt: array[int]
    answer: array[int]
    fixed_prefix_tokens: int | None = None
    first_message_tokens: int | None = None


@dataclass(slots=True, eq=False)
class Conversation:
    """The last prompt and answer of one line of conversation. Compared by identity."""

    tokens: array[int]
    prompt_tokens: int


@dataclass(frozen=True, slots=True)
class Lesson:
    """What a call taught.

    Attributes:
        fixed_tokens: length of the agent's fixed prefix in this prompt.
        conversation: the line of conversation this call belongs to.
        keep_history: whether prompt and answer of this call are likely to be read again.
        ended: conversations given up to bound memory; nothing will be learned from them.
    """

    fixed_tokens: int
    conversation: Conversation
    keep_history: bool
    ended: tuple[Conversation, ...] = ()


@dataclass(slots=True)
class _FixedPrefix:
    """Prefix common to the recent calls: to those of the window before and of this one.

    Two windows, so that a single odd prompt (a health check, a changed system prompt) is
    forgotten after at most two windows instead of shortening the prefix for good.
    """

    before: array[int] | None = None
    current: array[int] | None = None
    calls: int = 0

    def observe(self, prompt: array[int]) -> int:
        if self.current is None:
            self.current = prompt
        else:
            length = common_prefix_length(self.current, prompt)
            if length < len(self.current):
                self.current = self.current[:length]
        self.calls += 1
        length = len(self.current)
        if self.before is not None:
            length = min(length, common_prefix_length(self.before, prompt))
        if self.calls == CALLS_PER_WINDOW:
            self.before, self.current, self.calls = self.current, None, 0
        return length

    @property
    def empty(self) -> bool:
        return self.before is None and self.current is None

    def size(self) -> int:
        return sum(len(t) for t in (self.before, self.current) if t is not None)


@dataclass(slots=True)
class _Agent:
    fixed: _FixedPrefix = field(default_factory=_FixedPrefix)
    chat_score: int = 0


class CallLearner:
    """Learns from finished calls, within a budget of remembered tokens.

    Where the budget is exceeded, what was called least recently is forgotten, be it an agent or
    its conversations in a workflow; it is learned anew when it calls again. So agents long gone
    don't crowd out conversations, nor one-off conversations the agents. Deterministic: the same
    calls teach the same lessons, which tensor-parallel ranks rely on. A call costs O(prompt
    tokens).
    """

    def __init__(self, token_budget: int = DEFAULT_TOKEN_BUDGET) -> None:
        self._token_budget = token_budget
        self._agents: dict[Hashable, _Agent] = {}
        self._lines: dict[_Scope, list[Conversation]] = {}
        # Dicts as sets that keep their order: it has to be the same in every process.
        self._scopes: defaultdict[Hashable, dict[_Scope, None]] = defaultdict(dict)
        self._recency: OrderedDict[tuple[Hashable] | _Scope, None] = OrderedDict()
        self._tokens = 0

    @property
    def remembered_tokens(self) -> int:
        """Token ids held now; at most the budget plus what one agent needs."""
        return self._tokens

    def knows(self, agent: Hashable) -> bool:
        """Whether prompts of the agent are remembered; else its first message is of use."""
        known = self._agents.get(agent)
        return known is not None and not known.fixed.empty

    def observe(self, call: AgentCall) -> Lesson:
        """Learn from a finished call."""
        agent = self._agents.setdefault(call.agent, _Agent())
        if call.fixed_prefix_tokens is not None:
            fixed_tokens = min(call.fixed_prefix_tokens, len(call.prompt))
        else:
            held = agent.fixed.size()
            first = agent.fixed.empty
            fixed_tokens = agent.fixed.observe(call.prompt)
            if first and call.first_message_tokens is not None:
                fixed_tokens = min(fixed_tokens, call.first_message_tokens)
            self._tokens += agent.fixed.size() - held
        conversation, ended = self._continue_line(call, agent)
        for remembered in ((call.workflow, call.agent), (call.agent,)):
            self._recency[remembered] = None
            self._recency.move_to_end(remembered)
        return Lesson(fixed_tokens, conversation, agent.chat_score > 0, (*ended, *self._trim()))

    def forget_workflow(self, workflow: Hashable) -> list[Conversation]:
        """Drop the conversations of a workflow that has ended; what its agents taught stays."""
        scopes = tuple(self._scopes.get(workflow, ()))
        return [line for scope in scopes for line in self._drop_scope(scope)]

    def _continue_line(
        self, call: AgentCall, agent: _Agent
    ) -> tuple[Conversation, list[Conversation]]:
        scope = (call.workflow, call.agent)
        lines = self._lines.setdefault(scope, [])
        self._scopes[call.workflow][scope] = None
        tokens = call.prompt + call.answer
        ended: list[Conversation] = []
        line = max(
            (known for known in lines if _continues(known, call.prompt)),
            key=lambda known: common_prefix_length(known.tokens, call.prompt),
            default=None,
        )
        if line is not None:
            agent.chat_score = min(agent.chat_score + 1, _MAX_CHAT_SCORE)
            self._tokens -= len(line.tokens)
            lines.remove(line)
            line.tokens, line.prompt_tokens = tokens, len(call.prompt)
        else:
            if lines:
                agent.chat_score = max(agent.chat_score - 1, 0)
            line = Conversation(tokens, len(call.prompt))
        lines.append(line)
        self._tokens += len(tokens)
        if len(lines) > CONVERSATIONS_PER_AGENT:
            ended.append(lines.pop(0))
            self._tokens -= len(ended[-1].tokens)
        return line, ended

    def _trim(self) -> list[Conversation]:
        """Forget what is too much. Spares the last call: its agent and conversation come last."""
        ended: list[Conversation] = []
        while len(self._recency) > 2 and (
            self._tokens > self._token_budget or len(self._recency) > MAX_REMEMBERED
        ):
            oldest = next(iter(self._recency))
            if len(oldest) == 2:
                ended += self._drop_scope(oldest)
            else:
                self._tokens -= self._agents.pop(oldest[0]).fixed.size()
                del self._recency[oldest]
        return ended

    def _drop_scope(self, scope: _Scope) -> list[Conversation]:
        lines = self._lines.pop(scope)
        del self._recency[scope]
        workflow = scope[0]
        del self._scopes[workflow][scope]
        if not self._scopes[workflow]:
            del self._scopes[workflow]
        self._tokens -= sum(len(line.tokens) for line in lines)
        return lines


def _continues(line: Conversation, prompt: array[int]) -> bool:
    """Whether ``prompt`` takes up all of the line's last prompt and more of it than that.

    The answer need not match to its end: a chat template may tokenise it differently when it
    comes back as a message.
    """
    shared = common_prefix_length(line.tokens, prompt)
    return line.prompt_tokens < shared < len(prompt)


def common_prefix_length(a: Sequence[int], b: Sequence[int]) -> int:
    """Number of leading items ``a`` and ``b`` have in common. O(length), compared slice-wise.

    Both must be of one type: a slice of a list equals no slice of an array.
    """
    high = min(len(a), len(b))
    if a[:high] == b[:high]:
        return high
    low = 0
    while high - low > 1:
        middle = (low + high) // 2
        if a[low:middle] == b[low:middle]:
            low = middle
        else:
            high = middle
    return low
