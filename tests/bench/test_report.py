from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from typing import Any

import pytest

pytest.importorskip("jinja2")
pytest.importorskip("matplotlib")

from kvflow.bench import report
from kvflow.bench.charts import moving_hit_rate, prefix_shares, shown_agents
from kvflow.bench.report import headline, render_report, require_report_packages
from kvflow.errors import EnvironmentProblemError
from tests.bench.made_up import result, row


def as_read(*arms: str, **options: Any) -> dict[str, Any]:
    """A result as it comes back from its file."""
    made = result(arms or ("limit", "lru", "kvflow"), **options)
    content: dict[str, Any] = json.loads(json.dumps(made.to_json()))
    return content


class Page(HTMLParser):
    """Text, attributes by name, and whether every element is closed in turn."""

    VOID = frozenset({"meta", "br", "link", "img"})

    def __init__(self, html: str) -> None:
        super().__init__()
        self.text = ""
        self.attributes: dict[str, list[str]] = {}
        self.open: list[str] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in self.VOID:
            self.open.append(tag)
        for name, value in attrs:
            self.attributes.setdefault(name, []).append(value or "")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            self.attributes.setdefault(name, []).append(value or "")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture(scope="module")
def html() -> str:
    return render_report(as_read())


@pytest.fixture(scope="module")
def page(html: str) -> Page:
    return Page(html)


def test_the_page_is_whole_and_needs_nothing_else(html: str, page: Page) -> None:
    assert page.open == []
    for name in ("src", "href", "xlink:href", "srcset"):
        assert all(value.startswith("#") for value in page.attributes.get(name, []))
    assert all(target.startswith("#") for target in re.findall(r"url\(([^)]*)\)", html))
    assert "@import" not in html
    assert "<script" not in html


def test_what_plots_refer_to_is_there_once(page: Page) -> None:
    ids = page.attributes["id"]
    assert len(ids) == len(set(ids))
    for value in (*page.attributes.get("xlink:href", []), *page.attributes.get("href", [])):
        assert value.removeprefix("#") in ids


def test_it_says_what_was_found(page: Page) -> None:
    words = " ".join(page.text.split())
    assert "KVFlow found 50.0% of the prompt tokens in cache" in words
    assert "2.00 times as fast" in words
    assert "identical outputs" in words
    assert "Agents <that> nobody asked." in words
    assert "65.0%" in words  # the bound
    for name in ("limit", "lru", "kvflow"):
        assert name in page.text


def test_plots_have_words_for_those_who_cannot_see_them(page: Page) -> None:
    words = page.attributes["aria-label"]
    assert len(words) == 3
    assert all("lru" in text and "kvflow" in text for text in words)


def test_plots_take_the_colour_of_the_page(html: str) -> None:
    assert "currentColor" in html
    assert "#010203" not in html
    assert "prefers-color-scheme: dark" in html


def test_differences_are_seen_at_once() -> None:
    content = as_read()
    content["outputs_identical"] = False
    content["differences"] = {
        "count": 3,
        "first": [{"workflow_id": "w7", "position": 5, "repeat": 2, "arm": "kvflow"}],
    }
    text = " ".join(Page(render_report(content)).text.split())
    assert "Outputs are not identical: 3 calls" in text
    assert "w7 call 5 in kvflow, repeat 2" in text


def test_one_arm_alone_can_be_shown() -> None:
    text = Page(render_report(as_read("lru", repeats=1))).text
    assert "no outputs to compare" in text
    assert "There is nothing to compare KVFlow with" in text


def test_the_same_result_gives_the_same_page(html: str) -> None:
    assert render_report(as_read()) == html


def test_the_headline_is_about_the_best_of_the_others() -> None:
    content = as_read("limit", "lru", "kvflow-eviction", "kvflow")
    for arm in content["arms"]:
        arm["name"] = {"kvflow-eviction": "priority"}.get(arm["name"], arm["name"])
        arm["title"] = arm["name"]
    for one in content["ratios"]:
        one["arm"] = {"kvflow-eviction": "priority"}.get(one["arm"], one["arm"])
    content["ratios"].append({**content["ratios"][-1], "arm": "kvflow", "to": "priority"})
    assert "priority (the fastest of the others)" in headline(content)


def test_without_its_packages_the_report_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    require_report_packages()
    monkeypatch.setattr(report, "find_spec", lambda name: None)
    with pytest.raises(EnvironmentProblemError, match=r"kvflow\[bench\]"):
        require_report_packages()


def test_a_prefix_is_where_its_beginning_is_found() -> None:
    def shares(**changes: Any) -> dict[str, float]:
        return prefix_shares(row(**changes).to_json())

    assert shares() == {"device": 30 / 80, "host": 20 / 80, "storage": 0.0, "nowhere": 30 / 80}
    # What is cached beyond the fixed prefix does not count.
    assert shares(device_tokens=70, host_tokens=30) == {
        "device": 70 / 80,
        "host": 10 / 80,
        "storage": 0.0,
        "nowhere": 0.0,
    }
    assert shares(fixed_tokens=0)["nowhere"] == 1.0


def test_the_hit_rate_moves_along() -> None:
    rows = [row(cached_tokens=cached).to_json() for cached in (0, 100, 100, 0)]
    assert moving_hit_rate(rows, 2) == [0.0, 0.5, 1.0, 0.5]


def test_of_many_agents_those_with_most_calls_are_shown() -> None:
    rows = [row(n, agent_id=f"a{n}").to_json() for n in range(30)]
    rows += [row(n, agent_id=f"a{n}").to_json() for n in range(10, 30)]
    shown = [agent for _, agent in shown_agents(rows)]
    assert len(shown) == 24
    assert set(shown) > {f"a{n}" for n in range(10, 30)}
    assert shown == sorted(shown, key=lambda agent: int(agent[1:]))
