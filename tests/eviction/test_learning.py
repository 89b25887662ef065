from __future__ import annotations

import itertools
from array import array
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvflow.eviction import AgentCall, CallLearner, Conversation, Lesson, common_prefix_length
from kvflow.eviction import learning as learning_module
from kvflow.eviction.learning import CALLS_PER_WINDOW, CONVERSATIONS_PER_AGENT


def tokens(text: str) -> array[int]:
    """One token per character."""
    return array("q", map(ord, text))


def in_common(*sequences: Sequence[object]) -> int:
    """Counted place by place."""
    columns = zip(*sequences, strict=False)
    return sum(1 for _ in itertools.takewhile(lambda column: len(set(column)) == 1, columns))


def call(
    prompt: str,
    answer: str = "",
    *,
    agent: str = "agent",
    workflow: str = "workflow",
    fixed: int | None = None,
    first_message: int | None = None,
) -> AgentCall:
    return AgentCall(agent, workflow, tokens(prompt), tokens(answer), fixed, first_message)


def fixed_tokens(learner: CallLearner, *prompts: str, agent: str = "agent") -> list[int]:
    return [learner.observe(call(prompt, agent=agent)).fixed_tokens for prompt in prompts]


def kept(learner: CallLearner, *calls: AgentCall) -> list[bool]:
    return [learner.observe(each).keep_history for each in calls]


CHAT = (call("Sq1", "a1"), call("Sq1a1q2", "a2"), call("Sq1a1q2a2q3", "a3"))


def chatting(learner: CallLearner) -> None:
    """Make ``agent`` known as one that continues its conversations, in a workflow of its own."""
    for each in CHAT:
        learner.observe(
            AgentCall(each.agent, "the workflow it is known from", each.prompt, each.answer)
        )


class TestFixedPrefix:
    def test_all_of_the_first_prompt_and_then_what_is_common(self) -> None:
        assert fixed_tokens(CallLearner(), "SYS one", "SYS two", "SYS twelve") == [7, 4, 4]

    def test_a_prompt_that_ends_within_the_prefix_shortens_it(self) -> None:
        assert fixed_tokens(CallLearner(), "SYSTEM a", "SYS", "SYSTEM b") == [8, 3, 3]

    def test_an_agent_that_always_says_the_same_keeps_all_of_it(self) -> None:
        assert fixed_tokens(CallLearner(), *["SYS same"] * 20) == [8] * 20

    def test_it_is_learned_over_all_workflows(self) -> None:
        learner = CallLearner()
        learner.observe(call("SYS one", workflow="first"))
        assert learner.observe(call("SYS two", workflow="second")).fixed_tokens == 4

    def test_agents_have_their_own(self) -> None:
        learner = CallLearner()
        assert fixed_tokens(learner, "SYS a1", "SYS a2", agent="a") == [6, 5]
        assert fixed_tokens(learner, "OTHER b1", "OTHER b2", agent="b") == [8, 7]
        assert fixed_tokens(learner, "SYS a3", agent="a") == [5]

    @pytest.mark.parametrize("odd_at", range(2 * CALLS_PER_WINDOW))
    @pytest.mark.parametrize("odd", ["", "ping", "SYX"])
    def test_an_odd_prompt_is_forgotten_after_at_most_two_windows(
        self, odd_at: int, odd: str
    ) -> None:
        prompts = [f"SYS {chr(ord('a') + number)}" for number in range(26)] * 2
        prompts[odd_at] = odd
        learned = fixed_tokens(CallLearner(), *prompts)
        common = in_common("SYS ", odd)
        assert learned[odd_at + 1] == common
        assert set(learned[odd_at + 2 * CALLS_PER_WINDOW :]) == {4}

    @pytest.mark.parametrize(("stated", "expected"), [(0, 0), (3, 3), (7, 7), (8, 7), (9999, 7)])
    def test_a_stated_length_wins_and_is_capped_at_the_prompt(
        self, stated: int, expected: int
    ) -> None:
        learner = CallLearner()
        assert learner.observe(call("SYS one", fixed=stated)).fixed_tokens == expected
        fixed_tokens(learner, "SYS two", "SYS three")
        assert learner.observe(call("SYS one", fixed=stated)).fixed_tokens == expected

    @pytest.mark.parametrize(("first_message", "expected"), [(0, 0), (3, 3), (7, 7), (99, 7)])
    def test_of_the_first_call_only_the_first_message_is_held_to_be_fixed(
        self, first_message: int, expected: int
    ) -> None:
        each = call("SYS one", first_message=first_message)
        assert CallLearner().observe(each).fixed_tokens == expected

    def test_from_the_second_call_on_messages_do_not_count(self) -> None:
        learner = CallLearner()
        prompts = ["SYS example a", *["SYS example b"] * 3 * CALLS_PER_WINDOW]
        learned = [
            learner.observe(call(prompt, first_message=3)).fixed_tokens for prompt in prompts
        ]
        assert learned[0] == 3
        assert set(learned[1 : 2 * CALLS_PER_WINDOW]) == {12}
        assert set(learned[2 * CALLS_PER_WINDOW :]) == {13}

    def test_a_stated_length_wins_over_the_first_message(self) -> None:
        each = call("SYS one", fixed=5, first_message=3)
        assert CallLearner().observe(each).fixed_tokens == 5

    @given(st.lists(st.text("ab", max_size=6), max_size=4 * CALLS_PER_WINDOW))
    def test_it_is_what_this_window_and_the_one_before_have_in_common(
        self, prompts: list[str]
    ) -> None:
        learned = fixed_tokens(CallLearner(), *prompts)
        for number, length in enumerate(learned):
            window = number // CALLS_PER_WINDOW
            since = max(0, window - 1) * CALLS_PER_WINDOW
            assert length == in_common(*prompts[since : number + 1])


class TestConversation:
    def test_a_chat_is_recognised_when_it_first_continues(self) -> None:
        learner = CallLearner()
        lessons = [learner.observe(each) for each in CHAT]
        assert [lesson.keep_history for lesson in lessons] == [False, True, True]
        assert len({lesson.conversation for lesson in lessons}) == 1
        assert lessons[0].conversation.tokens == CHAT[-1].prompt + CHAT[-1].answer
        assert lessons[0].conversation.prompt_tokens == len(CHAT[-1].prompt)

    @pytest.mark.parametrize(
        "prompt",
        [
            pytest.param("S other", id="only the fixed prefix in common"),
            pytest.param("S question", id="the same prompt again"),
            pytest.param("S quest", id="a shorter prompt"),
            pytest.param("S question, longer", id="the prompt without the answer"),
            pytest.param("S question answ", id="nothing new after the answer"),
        ],
    )
    def test_what_is_not_a_chat(self, prompt: str) -> None:
        learner = CallLearner()
        first = learner.observe(call("S question", " answer"))
        second = learner.observe(call(prompt))
        assert second.keep_history is False
        assert second.conversation is not first.conversation

    def test_an_agent_that_starts_anew_each_time_is_never_taken_for_a_chat(self) -> None:
        learner = CallLearner()
        assert not any(kept(learner, *(call(f"SYS {n}", f"answer {n}") for n in range(30))))

    def test_an_answer_may_come_back_in_other_tokens(self) -> None:
        learner = CallLearner()
        assert kept(learner, call("Sq1", "answer"), call("Sq1anSWERq2", "a2")) == [False, True]

    def test_a_prompt_continues_only_what_its_own_workflow_and_agent_said(self) -> None:
        learner = CallLearner()
        learner.observe(call("Sq1", "a1", workflow="other"))
        learner.observe(call("Sq1", "a1", agent="other"))
        assert kept(learner, call("Sq1a1q2", "a2")) == [False]

    def test_a_chat_agent_is_one_in_every_workflow_from_its_first_call_on(self) -> None:
        learner = CallLearner()
        chatting(learner)
        assert kept(learner, call("S new", workflow="new")) == [True]
        assert kept(learner, call("S new", workflow="new", agent="other")) == [False]

    def test_an_agent_that_stops_chatting_is_given_a_second_chance(self) -> None:
        learner = CallLearner()
        chatting(learner)
        restarts = [call(f"S restart {letter}", "!") for letter in "abcd"]
        # In a workflow new to it, the first call continues nothing and shows nothing.
        assert kept(learner, *restarts) == [True, True, False, False]
        assert kept(learner, call("S restart d!?")) == [True]

    def test_a_long_chat_earns_no_more_than_that(self) -> None:
        learner = CallLearner()
        text = "S"
        for _ in range(20):
            learner.observe(call(text, "answer"))
            text += "answer question"
        assert kept(learner, call("S a"), call("S b"), call("S c")) == [True, False, False]

    def test_conversations_side_by_side_are_kept_apart(self) -> None:
        learner = CallLearner()
        starts = {name: f"S{name}" for name in "xyz"}
        lines = {name: learner.observe(call(text, "ok")) for name, text in starts.items()}
        assert len({lesson.conversation for lesson in lines.values()}) == 3
        for turn, name in itertools.product("12", "zxy"):
            starts[name] += f"ok{turn}"
            lesson = learner.observe(call(starts[name], "ok"))
            assert lesson.keep_history
            assert lesson.conversation is lines[name].conversation

    def test_a_prompt_continues_the_line_it_has_most_in_common_with(self) -> None:
        """Sampled twice, the same prompt had answers that begin alike; the other one is longer."""
        learner = CallLearner()
        short = learner.observe(call("Sq1", "Yes.")).conversation
        long = learner.observe(call("Sq1", "Yes, and here is why.")).conversation
        assert learner.observe(call("Sq1Yes. q2", "a")).conversation is short
        assert learner.observe(call("Sq1Yes, and here is why. q2", "b")).conversation is long

    def test_of_too_many_conversations_the_least_recently_continued_ends(self) -> None:
        learner = CallLearner()
        names = "abcdefgh"[: CONVERSATIONS_PER_AGENT + 1]
        lines = {name: learner.observe(call(f"S{name}", "!")) for name in names[:-1]}
        learner.observe(call("Sa!?", "!"))
        assert learner.observe(call(f"S{names[-1]}", "!")).ended == (lines["b"].conversation,)
        assert learner.observe(call("Sa!?!?")).conversation is lines["a"].conversation
        assert learner.observe(call("Sb!?")).conversation is not lines["b"].conversation


class TestForgettingAWorkflow:
    def test_its_conversations_are_given_back_in_the_order_they_were_first_called(self) -> None:
        learner = CallLearner()
        names = "fgbcaed"
        lines = [learner.observe(call("S", agent=agent)).conversation for agent in names]
        second = learner.observe(call("T", agent="g")).conversation
        learner.observe(call("S", workflow="another"))
        assert learner.forget_workflow("workflow") == [*lines[:2], second, *lines[2:]]

    def test_nothing_is_given_back_of_what_is_not_known(self) -> None:
        learner = CallLearner()
        assert learner.forget_workflow("never heard of") == []
        learner.observe(call("S"))
        learner.forget_workflow("workflow")
        assert learner.forget_workflow("workflow") == []

    def test_it_continues_no_more(self) -> None:
        learner = CallLearner()
        before = learner.observe(CHAT[0]).conversation
        learner.forget_workflow("workflow")
        after = learner.observe(CHAT[1])
        assert after.conversation is not before
        assert after.keep_history is False

    def test_what_its_agents_taught_stays(self) -> None:
        learner = CallLearner()
        chatting(learner)
        learner.forget_workflow("the workflow it is known from")
        lesson = learner.observe(call("Sx", workflow="new"))
        assert lesson.keep_history is True
        assert lesson.fixed_tokens == 1

    def test_its_tokens_are_released(self) -> None:
        learner = CallLearner()
        learner.observe(call("SYS", "answer", fixed=3))
        learner.observe(call("SYS", "answer", fixed=3, workflow="another"))
        assert learner.remembered_tokens == 18
        learner.forget_workflow("workflow")
        assert learner.remembered_tokens == 9


class TestBudget:
    def test_the_least_recently_called_conversation_goes_first(self) -> None:
        learner = CallLearner(token_budget=30)
        lines = [
            learner.observe(call("12345678", "90", workflow=workflow, fixed=0)).conversation
            for workflow in "xyz"
        ]
        learner.observe(call("1234567890?", workflow="x", fixed=0))
        assert learner.remembered_tokens == 21
        assert learner.forget_workflow("y") == []
        assert learner.forget_workflow("z") == [lines[2]]

    def test_what_had_to_go_is_reported_once(self) -> None:
        learner = CallLearner(token_budget=30)
        lines = [
            learner.observe(call("12345678", "90", workflow=workflow, fixed=0)).conversation
            for workflow in "xyz"
        ]
        lesson = learner.observe(call("12345678", "9012345", workflow="v", fixed=0))
        assert lesson.ended == (lines[0], lines[1])
        assert learner.forget_workflow("x") == []

    def test_an_agent_forgotten_is_learned_anew(self) -> None:
        learner = CallLearner(token_budget=40)
        fixed_tokens(learner, "SYS one", "SYS two", agent="a")
        fixed_tokens(learner, "x" * 40, agent="b")
        assert fixed_tokens(learner, "SYS three", "SYS four", agent="a") == [9, 4]

    def test_agents_long_gone_do_not_crowd_out_a_conversation(self) -> None:
        learner = CallLearner(token_budget=500)
        for number in range(100):
            learner.observe(call(f"agent {number}", agent=f"{number}", workflow=f"{number}"))
            learner.forget_workflow(f"{number}")
        assert learner.remembered_tokens > 450
        keeps: list[bool] = []
        for each in CHAT:
            keeps += kept(learner, each)
            learner.observe(call("x" * 40, agent="another"))
        assert keeps == [False, True, True]

    def test_the_call_itself_is_remembered_even_if_it_alone_is_too_large(self) -> None:
        learner = CallLearner(token_budget=0)
        assert kept(learner, *CHAT) == [False, True, True]
        assert learner.observe(call("x" * 100, agent="another")).ended != ()
        assert learner.observe(call("x" * 100, agent="another")).ended == ()

    def test_agents_and_workflows_without_number_do_not_grow_memory(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Neither an agent whose prefix is stated nor an empty prompt costs any token."""
        monkeypatch.setattr(learning_module, "MAX_REMEMBERED", 10)
        learner = CallLearner()
        ended: list[Conversation] = []
        for number in range(100):
            each = call("", agent=f"{number}", workflow=f"{number}", fixed=0)
            ended += learner.observe(each).ended
        assert learner.remembered_tokens == 0
        assert len(learner._agents) + len(learner._lines) <= 10
        assert len(learner._scopes) == len(learner._lines)
        assert len(ended) == 100 - len(learner._lines)


def linked(turns: list[tuple[str, str, str, int]], fixed: int | None) -> list[AgentCall]:
    """Calls of which each may go on from one of the three before it: ``back`` says which."""
    calls: list[AgentCall] = []
    for scope, prompt, answer, back in turns:
        each = call(prompt, answer, agent=scope[0], workflow=scope[1], fixed=fixed)
        if 0 < back <= len(calls):
            last = calls[-back]
            prompt_so_far = last.prompt + last.answer + each.prompt
            each = AgentCall(last.agent, last.workflow, prompt_so_far, each.answer, fixed)
        calls.append(each)
    return calls


TEXTS = st.sampled_from(["", "a", "b", "ab", "abb", "abba"])
SCOPES = st.sampled_from(["Au", "Av", "Aw", "Bu", "Bv", "Bw"])
LINKED_CALLS = st.builds(
    linked,
    st.lists(st.tuples(SCOPES, TEXTS, TEXTS, st.integers(0, 5)), max_size=25),
    st.sampled_from([None, None, 2]),
)


def held_tokens(learner: CallLearner) -> int:
    """Counted anew, in everything the learner holds."""
    lines = sum(len(line.tokens) for lines in learner._lines.values() for line in lines)
    return lines + sum(agent.fixed.size() for agent in learner._agents.values())


@given(LINKED_CALLS, st.integers(0, 60))
def test_memory_stays_within_the_budget_and_what_one_agent_needs(
    calls: list[AgentCall], budget: int
) -> None:
    learner = CallLearner(token_budget=budget)
    longest_prompt = longest_line = 0
    for each in calls:
        learner.observe(each)
        longest_prompt = max(longest_prompt, len(each.prompt))
        longest_line = max(longest_line, len(each.prompt) + len(each.answer))
        one_agent = 2 * longest_prompt + CONVERSATIONS_PER_AGENT * longest_line
        assert learner.remembered_tokens == held_tokens(learner)
        assert learner.remembered_tokens <= max(budget, one_agent)
        assert sum(map(len, learner._scopes.values())) == len(learner._lines)
        assert {agent for _, agent in learner._lines} <= set(learner._agents)
    for workflow in "uvw":
        learner.forget_workflow(workflow)
        assert learner.remembered_tokens == held_tokens(learner)
    assert not learner._lines
    assert not learner._scopes


@given(LINKED_CALLS, st.integers(0, 60), st.sets(st.integers(0, 24)))
def test_a_conversation_lives_until_it_is_reported_ended_and_ends_once(
    calls: list[AgentCall], budget: int, closing: set[int]
) -> None:
    learner = CallLearner(token_budget=budget)
    live: set[Conversation] = set()
    ended: list[Conversation] = []
    for number, each in enumerate(calls):
        lesson = learner.observe(each)
        live.add(lesson.conversation)
        ended += lesson.ended
        if number in closing:
            ended += learner.forget_workflow(each.workflow)
        assert lesson.conversation not in lesson.ended
        assert len(ended) == len(set(ended))
        assert {line for lines in learner._lines.values() for line in lines} == live - set(ended)


@given(LINKED_CALLS, st.integers(0, 60))
def test_the_same_calls_teach_the_same(calls: list[AgentCall], budget: int) -> None:
    assert taught(calls, budget) == taught(calls, budget)


def taught(calls: Sequence[AgentCall], budget: int) -> list[tuple[object, ...]]:
    """All lessons, with conversations numbered as they appear."""
    learner = CallLearner(token_budget=budget)
    numbers: dict[Conversation, int] = {}

    def written(lesson: Lesson) -> tuple[object, ...]:
        number = numbers.setdefault(lesson.conversation, len(numbers))
        ended = [numbers[line] for line in lesson.ended]
        return (lesson.fixed_tokens, number, lesson.keep_history, ended)

    lessons = [written(learner.observe(each)) for each in calls]
    closed = [numbers[line] for workflow in "uvw" for line in learner.forget_workflow(workflow)]
    return [*lessons, tuple(closed)]


@given(st.lists(st.integers(0, 1), max_size=20), st.lists(st.integers(0, 1), max_size=20))
def test_the_common_prefix_of_any_two(a: list[int], b: list[int]) -> None:
    expected = in_common(a, b)
    assert common_prefix_length(a, b) == common_prefix_length(b, a) == expected
    assert common_prefix_length(array("q", a), array("q", b)) == expected
    assert common_prefix_length(tuple(a), tuple(b)) == expected


@given(st.integers(0, 300), st.data())
def test_the_common_prefix_of_two_that_differ_in_one_place(
    length: int, data: st.DataObject
) -> None:
    at = data.draw(st.integers(0, length))
    longer = data.draw(st.integers(0, 50))
    a = array("q", range(length))
    b = a + array("q", range(longer))
    assert common_prefix_length(a, b) == length
    if at < length:
        b[at] = -1
        assert common_prefix_length(a, b) == at
