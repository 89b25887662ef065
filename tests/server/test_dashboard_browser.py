"""The dashboard in a real Chromium. Its screenshots are in pytest's temporary folder."""

from __future__ import annotations

import random
import re
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx2
import pytest
from playwright.sync_api import Browser, Page, expect

from kvflow.server import ServiceSettings
from tests.server.browser import Tab, axe_violations, chromium, tab
from tests.server.reports import placed, report
from tests.server.running import RunningService, running_service

TEAM = ["planner", "architect", "researcher", "coder", "tester", "reviewer", "release_manager"]
PLACED = [
    placed("planner", 700, 700),
    placed("architect", 740, 740),
    placed("researcher", 780, 300, 480),
    placed("coder", 820, 0, 820),
    placed("tester", 860, 0, 100, 760),
    placed("reviewer", 900),
]
"""Nobody has reported where the release manager's is."""
PLACES = ["device", "device", "host", "host", "storage", "gone", "unknown"]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as browser:
        yield browser


@pytest.fixture(scope="module")
def shots(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("dashboard")


class Service:
    """A running service and the calls that tests make to it."""

    def __init__(self, running: RunningService, key: str | None = None) -> None:
        self.url = running.url
        headers = {} if key is None else {"Authorization": f"Bearer {key}"}
        self.http = httpx2.Client(
            base_url=running.url, headers=headers, timeout=30, trust_env=False
        )
        self._reports = 0

    def post(self, path: str, body: Any) -> None:
        self.http.post(path, json=body).raise_for_status()

    def create(self, workflow_id: str, agents: list[str], **fields: Any) -> None:
        edges = [{"source": a, "target": b} for a, b in pairwise(agents)]
        self.post(
            "/v1/workflows",
            {
                "workflow_id": workflow_id,
                "agents": [{"agent_id": agent, "join": "any"} for agent in agents],
                "edges": edges,
                "entry": agents[:1],
                **fields,
            },
        )

    def event(self, workflow_id: str, kind: str, agent_id: str) -> None:
        self.post(
            f"/v1/workflows/{workflow_id}/events", {"type": f"step_{kind}", "agent_id": agent_id}
        )

    def report(self, agents: list[dict[str, Any]] | None = None) -> None:
        self._reports += 1
        n = self._reports
        totals = {
            "requests": 40 * n,
            "prompt_tokens": 40_000 * n,
            "cached_tokens": 30_000 * n,
            "device_hit_tokens": 24_000 * n,
            "host_hit_tokens": 6_000 * n,
            "prefetch_used_tokens": 900 * n,
            "prefetch_wasted_tokens": 100 * n,
        }
        body = report(
            n,
            agents=PLACED if agents is None else agents,
            totals=totals,
            counts=(20 * n, 15 * n, 5 * n, 0, 0),
            host={"size_tokens": 4000, "used_tokens": 1000},
            interval_s=600.0,
        )
        self.post("/v1/engines/gpu-0/report", body)


@pytest.fixture(scope="module")
def shared() -> Iterator[Service]:
    """With a team's workflow, some more, and an engine; tests change only what is their own."""
    with running_service(ServiceSettings()) as running:
        service = Service(running)
        loop = [{"source": "reviewer", "target": "coder", "kind": "choice"}]
        loop += [{"source": "release_manager", "target": "planner"}]
        loop += [{"source": a, "target": b} for a, b in pairwise(TEAM)]
        service.create("a-team", TEAM, name="The team", edges=loop)
        service.event("a-team", "started", "planner")
        service.event("a-team", "finished", "planner")
        service.event("a-team", "started", "architect")
        for number in range(60):
            service.create(f"other-{number:02}", ["x", "y"], client_id=f"client-{number % 3}")
        service.report()
        service.report()
        yield service
        service.http.close()


@pytest.fixture
def opened(browser: Browser, shared: Service) -> Iterator[Tab]:
    with tab(browser, f"{shared.url}/#/a-team") as found:
        expect(found.page.locator("#picture-title")).to_contain_text("a-team")
        yield found
        assert found.problems == []
        assert found.hosts == {shared.url.removeprefix("http://")}


def node(page: Page, agent: str) -> Any:
    return page.locator("#picture .node").filter(has_text=re.compile(rf"^{agent}:"))


def next_poll(page: Page) -> None:
    """Wait until the page has shown what it asked for anew."""
    with page.expect_response("**/v1/overview/workflows/*"):
        pass
    page.evaluate("new Promise(requestAnimationFrame)")


def open_details(page: Page) -> None:
    for summary in page.locator("details > summary").all():
        summary.click()


class TestAtAGlance:
    def test_figures_and_engines(self, opened: Tab, shared: Service) -> None:
        page = opened.page
        shared.report()  # figures are of the last minute
        opened.refresh()
        expect(page.locator("#connection")).to_have_text("Live")
        for name, text in {
            "workflows": "61",
            "engines": "1",
            "engines-sub": "1 live",
            "hit": "75%",
            "hit-sub": "device 60%, host 15%",
            "ttft": "100 ms",
            "prefetch": "90%",
        }.items():
            expect(page.locator(f"#tile-{name}")).to_have_text(text)
        row = page.locator("#engines tr")
        expect(row).to_have_count(1)
        for text in ("gpu-0", "live", "400 of 1,000", "1,000 of 4,000", "75%", "tiny"):
            expect(row).to_contain_text(text)
        expect(page.locator("#hit-chart svg")).to_have_attribute("aria-label", re.compile("75%"))
        expect(page.locator("#prefetch-chart rect.used")).not_to_have_count(0)

    def test_the_graph_says_when_each_agent_runs_and_where_its_prefix_is(self, opened: Tab) -> None:
        page = opened.page
        expect(page.locator("#picture .node")).to_have_count(len(TEAM))
        expect(page.locator("#picture .edges path")).to_have_count(len(TEAM) + 1)
        for agent, place in zip(TEAM, PLACES, strict=True):
            found = node(page, agent)
            assert place in found.get_attribute("class").split()
            assert ("running" in found.get_attribute("class")) == (agent == "architect")
        assert node(page, "researcher").locator(".steps").text_content() == "1"
        assert node(page, "planner").locator(".steps").text_content() == "6"
        expect(node(page, "coder")).to_contain_text("host · 820 tok")

    def test_the_table_says_the_same_in_the_order_of_steps(self, opened: Tab) -> None:
        page = opened.page
        page.locator("#agents-details summary").click()
        rows = page.locator("#agents tr")
        expect(rows).to_have_count(len(TEAM))
        cells = [row.locator("th, td").all_inner_texts() for row in rows.all()]
        assert [row[0] for row in cells] == [*TEAM[1:], "planner"]
        assert cells[0][1] == "0 (runs now)"
        assert cells[1] == [
            *("researcher", "1 (may run next)", "coder", "host", "780", "300", "480", "0"),
            "gpu-0",
        ]
        assert cells[4][2] == "coder (perhaps), release_manager"
        assert cells[5][3] == "not reported"

    def test_it_follows_the_workflow(self, browser: Browser, shared: Service) -> None:
        shared.create("z-moves", ["planner", "coder"])
        with tab(browser, f"{shared.url}/#/z-moves") as found:
            expect(node(found.page, "coder").locator(".steps")).to_have_text("2")
            shared.event("z-moves", "started", "planner")
            expect(node(found.page, "coder").locator(".steps")).to_have_text("1")
            expect(node(found.page, "planner")).to_have_class(re.compile("running"))
            shared.http.delete("/v1/workflows/z-moves")
            found.refresh()
            expect(found.page.locator("#picture")).to_contain_text("z-moves has ended")


class TestFinding:
    def test_pages(self, opened: Tab) -> None:
        page = opened.page
        names = page.locator("#workflows .name")
        expect(names).to_have_count(25)
        expect(names.first).to_have_text("The team")
        assert page.locator("#page-back").is_disabled()
        page.locator("#page-next").click()
        expect(names.first).to_have_text("other-24")
        page.locator("#page-next").click()
        expect(names).to_have_count(11)
        assert page.locator("#page-next").is_disabled()
        page.locator("#page-back").click()
        expect(names.first).to_have_text("other-24")

    def test_search_and_those_that_run(self, opened: Tab) -> None:
        page = opened.page
        names = page.locator("#workflows .name")
        page.locator("#search").fill("CLIENT-1")
        expect(names).to_have_count(20)
        expect(names.first).to_have_text("other-01")
        page.locator("#running-only").check()
        expect(page.locator("#workflows-empty")).to_have_text("None matches.")
        page.locator("#search").fill("")
        expect(names).to_have_text(["The team"])

    def test_a_name_is_text_whatever_it_looks_like(self, browser: Browser, shared: Service) -> None:
        name = "<img src=x onerror=alert(1)>"
        shared.create("z-markup", ["a"], name=name)
        with tab(browser, f"{shared.url}/#/z-markup") as found:
            expect(found.page.locator("#picture-title")).to_have_text(f"{name} (z-markup)")
            assert found.page.locator("main img").count() == 0
            assert found.problems == []
        shared.http.delete("/v1/workflows/z-markup")


class TestWithoutAMouse:
    def test_the_keyboard_reaches_everything(self, opened: Tab) -> None:
        page = opened.page
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.textContent") == "Skip to the content"
        page.keyboard.press("Enter")
        assert page.evaluate("document.activeElement.id") == "main"
        reached = []
        for _ in range(8):
            page.keyboard.press("Tab")
            reached.append(page.evaluate("document.activeElement.id"))
        assert reached[:2] == ["running-only", "search"]
        second = page.locator("#workflows button").nth(1)
        second.focus()
        page.keyboard.press("Enter")
        expect(page.locator("#picture-title")).to_have_text("other-00")
        expect(second).to_have_attribute("aria-current", "true")
        expect(page.locator("#announce")).to_have_text("Workflow other-00 is shown.")
        opened.refresh()
        second.focus()
        next_poll(page)
        assert second.evaluate("element => element === document.activeElement")

    def test_polling_announces_nothing(self, opened: Tab) -> None:
        page = opened.page
        page.evaluate(
            """() => {
              window.said = 0;
              const count = new MutationObserver((changes) => { window.said += changes.length; });
              const live = "[aria-live], [role=status], [role=alert]";
              for (const one of document.querySelectorAll(live))
                count.observe(one, { childList: true, characterData: true, subtree: true });
            }"""
        )
        for _ in range(2):
            next_poll(page)
        assert page.evaluate("window.said") == 0

    @pytest.mark.parametrize(
        ("scheme", "width"), [("light", 1440), ("dark", 1440), ("light", 390), ("dark", 390)]
    )
    def test_axe_finds_nothing(
        self, browser: Browser, shared: Service, shots: Path, scheme: str, width: int
    ) -> None:
        options = {"color_scheme": scheme, "viewport": {"width": width, "height": 900}}
        with tab(browser, f"{shared.url}/#/a-team", **options) as found:
            page = found.page
            expect(page.locator("#picture .node")).to_have_count(len(TEAM))
            expect(page.locator("#engines tr")).to_have_count(1)
            page.screenshot(path=shots / f"{scheme}-{width}.png", full_page=True)
            open_details(page)
            expect(page.locator("#agents tr")).to_have_count(len(TEAM))
            assert axe_violations(page) == []
            assert page.evaluate("document.documentElement.scrollWidth") <= width

    @pytest.mark.parametrize("scheme", ["light", "dark"])
    def test_text_in_the_drawing_is_legible(
        self, browser: Browser, shared: Service, scheme: str
    ) -> None:
        """axe does not know what is behind text in a drawing."""
        with tab(browser, f"{shared.url}/#/a-team", color_scheme=scheme) as found:
            expect(found.page.locator("#picture .node")).to_have_count(len(TEAM))
            pairs = found.page.evaluate(
                """() => [...document.querySelectorAll("#picture .node")].flatMap((node) => {
                  const fill = (selector) => getComputedStyle(node.querySelector(selector)).fill;
                  const stroke = getComputedStyle(node.querySelector(".box")).stroke;
                  const page = getComputedStyle(document.querySelector("#picture")).backgroundColor;
                  return [[fill(".name"), fill(".box"), 4.5], [fill(".where"), fill(".box"), 4.5],
                          [fill(".steps"), fill("circle"), 4.5], [stroke, page, 3]];
                })"""
            )
        assert len(pairs) == 4 * len(TEAM)
        for ink, paper, least in pairs:
            assert contrast(ink, paper) >= least, (ink, paper)


class TestTheme:
    def test_goes_with_the_system_or_with_what_is_chosen(
        self, browser: Browser, shared: Service
    ) -> None:
        with tab(browser, shared.url, color_scheme="dark") as found:
            page = found.page
            dark = background(page)
            page.locator("#theme").click()
            expect(page.locator("#theme-name")).to_have_text("light")
            light = background(page)
            assert luminance(light) > 0.5 > luminance(dark)
            page.reload()
            assert background(page) == light
            expect(page.locator("#theme-name")).to_have_text("light")
            page.locator("#theme").click()
            assert background(page) == dark
            page.locator("#theme").click()
            expect(page.locator("#theme-name")).to_have_text("auto")
            page.emulate_media(color_scheme="light")
            assert background(page) == light


class TestKey:
    @pytest.fixture
    def locked(self) -> Iterator[Service]:
        with running_service(ServiceSettings(api_key="right-key")) as running:
            service = Service(running, "right-key")
            service.create("secret-workflow", ["a"])
            yield service
            service.http.close()

    def test_is_asked_for_and_kept_in_the_tab_alone(
        self, browser: Browser, locked: Service, shots: Path
    ) -> None:
        with tab(browser, locked.url) as found:
            page = found.page
            expect(page.locator("#gate")).to_be_visible()
            assert page.locator("#content").is_hidden()
            assert page.evaluate("document.activeElement.id") == "key"
            expect(page.locator("#gate-error")).to_have_text("")
            for wrong in ("wrong-key", "clé"):
                page.locator("#key").fill(wrong)
                page.keyboard.press("Enter")
                expect(page.locator("#gate-error")).not_to_have_text("")
                assert page.locator("#content").is_hidden()
            page.screenshot(path=shots / "key.png")
            assert axe_violations(page) == []
            page.locator("#key").fill("wrong-key")
            page.keyboard.press("Enter")
            expect(page.locator("#gate-error")).to_contain_text("not a key of the service")
            page.locator("#key").fill("right-key")
            page.keyboard.press("Enter")
            expect(page.locator("#workflows .name")).to_have_text(["secret-workflow"])
            expect(page.locator("#gate")).to_be_hidden()
            kept = page.evaluate(
                "[Object.values(sessionStorage), Object.values(localStorage), document.cookie]"
            )
            assert kept == [["right-key"], [], ""]
            page.reload()
            expect(page.locator("#workflows .name")).to_have_text(["secret-workflow"])
            page.locator("#forget").click()
            expect(page.locator("#gate")).to_be_visible()
            assert page.evaluate("sessionStorage.length") == 0
            assert found.problems == []


def test_a_service_that_is_away_is_said_once_and_found_again(
    browser: Browser, shared: Service
) -> None:
    with tab(browser, f"{shared.url}/#/a-team") as found:
        page = found.page
        expect(page.locator("#connection")).to_have_text("Live")
        page.context.set_offline(True)
        expect(page.locator("#connection")).to_contain_text("does not answer")
        expect(page.locator("#picture .node")).to_have_count(len(TEAM))  # what was known stays
        page.context.set_offline(False)
        expect(page.locator("#connection")).to_have_text("Live")


def test_an_empty_service_says_what_to_do(browser: Browser) -> None:
    with running_service(ServiceSettings()) as running, tab(browser, running.url) as found:
        expect(found.page.locator("#workflows-empty")).to_contain_text("No workflow is live")
        expect(found.page.locator("#engines-empty")).to_contain_text("kvflow engine")
        expect(found.page.locator("#hit-chart")).to_contain_text("No engine has reported")
        assert axe_violations(found.page) == []
        assert found.problems == []


class TestLayout:
    @pytest.mark.parametrize(
        ("agents", "edges", "width"),
        [
            (1, 0, 900),
            (2, 1, 300),
            (12, 14, 900),
            (50, 80, 1000),
            (50, 80, 380),
            (1000, 2500, 1100),
        ],
    )
    def test_no_two_nodes_overlap_and_edges_lead_forward(
        self, opened: Tab, agents: int, edges: int, width: int
    ) -> None:
        rng = random.Random(agents)
        ids = [f"a{n}" for n in range(agents)]
        pairs = [(ids[max(0, n - rng.randint(1, 4))], ids[n]) for n in range(1, agents)]
        pairs += [(rng.choice(ids), rng.choice(ids)) for _ in range(edges - len(pairs))]
        drawn = [{"source": a, "target": b, "kind": "always"} for a, b in pairs]
        started_s = time.monotonic()
        plan = opened.page.evaluate(
            """async ([ids, edges, width]) => {
              const { layout, NODE } = await import("/dashboard/layout.js");
              const plan = layout(ids, edges, ids.slice(0, 1), width);
              return { ...plan, nodes: Object.fromEntries(plan.nodes), node: NODE };
            }""",
            [ids, drawn, width],
        )
        assert time.monotonic() - started_s < 10
        assert plan["nodes"].keys() == set(ids)
        assert len(plan["edges"]) == len(drawn)
        size = plan["node"]
        places = sorted((one["y"], one["x"]) for one in plan["nodes"].values())
        for number, (y, x) in enumerate(places):
            assert 0 <= x <= plan["width"] - size["width"]
            assert 0 <= y <= plan["height"] - size["height"]
            for other_y, other_x in places[number + 1 :]:
                if other_y >= y + size["height"]:
                    break
                assert abs(other_x - x) >= size["width"]
        if plan["width"] > width:
            assert width < size["width"] + 100  # one column is the least there can be
        for edge in plan["edges"]:
            a, b = plan["nodes"][edge["source"]], plan["nodes"][edge["target"]]
            if not edge["back"]:
                assert (a["band"], a["x"]) < (b["band"], b["x"])

    def test_a_thousand_agents_are_drawn_and_followed(
        self, browser: Browser, shared: Service, shots: Path
    ) -> None:
        ids = [f"agent-{n}" for n in range(1000)]
        edges = [
            {"source": ids[n], "target": ids[m]}
            for n in range(1000)
            for m in (2 * n + 1, 2 * n + 2)
            if m < 1000
        ]
        shared.create("z-large", ids, edges=edges)
        with tab(browser, f"{shared.url}/#/z-large") as found:
            page = found.page
            expect(page.locator("#picture .node")).to_have_count(1000)
            shared.event("z-large", "started", "agent-0")
            expect(page.locator("#picture .node.running")).to_have_count(1)
            page.screenshot(path=shots / "thousand.png")
            assert found.problems == []
        shared.http.delete("/v1/workflows/z-large")


def background(page: Page) -> str:
    colour: str = page.evaluate("getComputedStyle(document.body).backgroundColor")
    return colour


def luminance(colour: str) -> float:
    """WCAG's relative luminance."""
    channels = [int(part) / 255 for part in re.findall(r"\d+", colour)[:3]]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)
