"""The documents hang together: links lead somewhere, and what they name is there."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from benchmarks import tables

ROOT = Path(__file__).parents[1]
DOCS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("examples/*.md")])
FENCED = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


@cache
def anchors(path: Path) -> frozenset[str]:
    """Of the headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", FENCED.sub("", path.read_text()), re.MULTILINE)
    plain = (re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading).lower() for heading in headings)
    return frozenset(re.sub(r"[^\w\- ]", "", heading).replace(" ", "-") for heading in plain)


def links(path: Path) -> Iterator[tuple[Path, str]]:
    """Files that are linked to, with the anchor in them if there is one."""
    for target in re.findall(r"\]\(([^)\s]+)\)", FENCED.sub("", path.read_text())):
        if not re.match(r"\w+:", target):
            file, _, anchor = target.partition("#")
            yield (path.parent / file).resolve() if file else path, anchor


@pytest.mark.parametrize("path", DOCS, ids=name)
def test_links_lead_somewhere(path: Path) -> None:
    for target, anchor in links(path):
        assert target.exists(), f"{name(path)} links to {target}"
        if anchor:
            assert anchor in anchors(target), f"{name(path)} links to {name(target)}#{anchor}"


@pytest.mark.parametrize("document", tables.DOCUMENTS)
def test_tables_are_made_of_the_results(document: str) -> None:
    text = (ROOT / document).read_text()
    assert "<!-- table:" in text
    assert tables.rendered(text) == text, "run `make tables`"


def test_the_readme_leads_to_every_page() -> None:
    linked = {target for target, _ in links(ROOT / "README.md")}
    pages = set(ROOT.glob("docs/*.md")) | {ROOT / "ARCHITECTURE.md"}
    # All tables, which the page of results leads to.
    assert pages - linked == {ROOT / "docs" / "measurements.md"}


def test_every_decision_follows_the_last() -> None:
    decisions = sorted(path.name for path in ROOT.glob("docs/adr/0*.md"))
    assert [int(name[:4]) for name in decisions] == list(range(1, len(decisions) + 1))


@pytest.mark.parametrize(
    ("begins", "package"),
    [("The service's parts", "server"), ("The plugin's modules", "sglang_plugin")],
)
def test_architecture_names_modules_that_exist(begins: str, package: str) -> None:
    text = (ROOT / "ARCHITECTURE.md").read_text().partition(begins)[2]
    rows = re.findall(
        r"^\| (`.+?`) \|", text[: text.index("\n\n", text.index("|---"))], re.MULTILINE
    )
    modules = [name for row in rows for name in re.findall(r"`(\w+)`", row)]
    assert len(modules) > 10
    folder = ROOT / "kvflow" / package
    for module in modules:
        assert (folder / f"{module}.py").exists() or (folder / module).is_dir(), module
