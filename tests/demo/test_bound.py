from __future__ import annotations

from kvflow.demo.bound import clairvoyant_hits
from tests.demo.conftest import make_answer

PAGE = 4


def answers(*first_ids: int, prompt: int = 8, output: int = 5) -> list[object]:
    return [
        make_answer(
            prompt_tokens=prompt,
            prompt_ids=range(first, first + prompt),
            output_ids=range(first + prompt, first + prompt + output),
        )
        for first in first_ids
    ]


def test_a_cache_for_everything_finds_every_repeated_page() -> None:
    assert clairvoyant_hits(answers(0, 100, 0, 100), 1000, PAGE) == [0, 0, 8, 8]


def test_what_is_used_sooner_stays() -> None:
    # Room for the running call (3 pages) and one prompt (2 pages); the cycle is A B C.
    hits = clairvoyant_hits(answers(0, 100, 200, 0, 100, 200), 5 * PAGE, PAGE)
    assert sum(hits or ()) == 16
    assert hits == [0, 0, 0, 8, 0, 8]


def test_the_last_token_of_an_answer_takes_no_room() -> None:
    # 15 tokens fill three pages, 16 would fill four; beside the running call there is room for two.
    hits = clairvoyant_hits(answers(0, 100, 0, 100, output=8), 5 * PAGE, PAGE)
    assert hits == [0, 0, 8, 8]


def test_without_token_ids_there_is_no_bound() -> None:
    known = answers(0, 100)
    unknown = make_answer(prompt_ids=())
    assert clairvoyant_hits([*known, unknown], 1000, PAGE) is None
