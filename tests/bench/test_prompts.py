from __future__ import annotations

from kvflow.bench.prompts import TextPrompts, TokenPrompts
from kvflow.bench.vocabulary import TokenVocabulary
from kvflow.workload import Piece
from tests.bench.made_up import call

FIXED, QUESTION, SAID, NEXT = (
    Piece("fixed", 5),
    Piece("question", 3),
    Piece("said", 2),
    Piece("next", 4),
)


def test_token_prompts_are_the_pieces_with_the_answer_that_was_given() -> None:
    vocabulary = TokenVocabulary(1000)
    chat = call("a", prompt=(FIXED, QUESTION, SAID, NEXT))
    body = TokenPrompts(vocabulary).body(chat, {"said": (7, 8)})
    assert body["input_ids"] == [
        *vocabulary.ids(FIXED),
        *vocabulary.ids(QUESTION),
        7,
        8,
        *vocabulary.ids(NEXT),
    ]
    assert body["sampling_params"] == {
        "temperature": 0,
        "max_new_tokens": 8,
        "ignore_eos": True,
    }


def test_a_body_does_not_change_those_before_it() -> None:
    prompts = TokenPrompts(TokenVocabulary(1000))
    first = prompts.body(call("a", prompt=(FIXED,)), {})
    length = len(first["input_ids"])
    prompts.body(call("a", prompt=(FIXED, QUESTION)), {})
    assert len(first["input_ids"]) == length


def test_text_prompts_are_chats() -> None:
    chat = call("a", prompt=(FIXED, QUESTION, SAID, NEXT))
    body = TextPrompts().body(chat, {"said": "Quite so."})
    roles = [message["role"] for message in body["messages"]]
    assert roles == ["system", "user", "assistant", "user"]
    assert [len(m["content"].split()) for m in body["messages"]] == [5, 3, 2, 4]
    assert body["messages"][2]["content"] == "Quite so."
    assert body["max_tokens"] == 8


def test_text_that_is_not_an_answer_is_one_message() -> None:
    body = TextPrompts().body(call("a", prompt=(FIXED, QUESTION, NEXT)), {})
    assert [len(m["content"].split()) for m in body["messages"]] == [5, 7]
