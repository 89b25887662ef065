"""The report's plots: SVG to be put into a page, in the page's own colours."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from io import StringIO
from itertools import accumulate, pairwise
from typing import Any, Final

__all__ = [
    "hit_rate_chart",
    "moving_hit_rate",
    "prefix_shares",
    "shown_agents",
    "tier_timeline",
    "ttft_chart",
]

Arm = Mapping[str, Any]
Row = Mapping[str, Any]

ARM_STYLES: Final[Mapping[str, tuple[str, str, float]]] = {
    "limit": ("#8a8a8a", "--", 1.4),
    "lru": ("#d98b00", "-", 1.4),
    "priority": ("#c060a0", "-", 1.4),
    "hicache-write-through": ("#3d9be0", "-", 1.4),
    "hicache-write-back": ("#3d9be0", ":", 1.6),
    "kvflow-eviction": ("#0f9d76", ":", 2.0),
    "kvflow": ("#0f9d76", "-", 2.4),
}
TIER_COLOURS: Final[Mapping[str, str]] = {
    "device": "#0f9d76",
    "host": "#3d9be0",
    "storage": "#a87cc8",
    "nowhere": "#e0733a",
}
TIER_TITLES: Final = {
    "device": "on the device",
    "host": "on the host",
    "storage": "in storage",
    "nowhere": "nowhere: computed again",
}
MAX_AGENTS: Final = 24
MAX_CALLS: Final = 400
_MAX_LANES: Final = 4
_WIDTH: Final = 8.0
_OTHER_STYLE: Final = ("#8a8a8a", "-", 1.4)
# Stands for the colour of the page's text until the SVG is written.
_TEXT: Final = "#010203"
_SETTINGS: Final[dict[str, Any]] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "kvflow",
    "font.size": 10.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.15,
    "grid.color": _TEXT,
    **{
        name: _TEXT
        for name in (
            "text.color",
            "axes.edgecolor",
            "axes.labelcolor",
            "axes.titlecolor",
            "xtick.color",
            "ytick.color",
        )
    },
}


def ttft_chart(arms: Sequence[Arm]) -> str:
    """Which share of the counted calls, of all repeats, had its first token by when."""
    with _drawing(3.4) as (figure, (axes,)):
        for arm in arms:
            times = sorted(row["ttft_s"] for row in _counted(arm))
            colour, line, width = _style(arm)
            shares = [(number + 1) / len(times) for number in range(len(times))]
            axes.step(
                [times[0], *times],
                [0.0, *shares],
                where="post",
                color=colour,
                ls=line,
                lw=width,
                label=arm["name"],
            )
        axes.set_xlabel("time to first token, s")
        axes.set_ylabel("share of calls")
        axes.set_ylim(0, 1.01)
        axes.set_xlim(left=0)
        _legend(axes)
        return _svg(figure, "ttft")


def hit_rate_chart(arms: Sequence[Arm]) -> str:
    """The hit rate of the first repeat as it went, over a window of calls that moves along."""
    with _drawing(3.0) as (figure, (axes,)):
        warm_up = 0
        for arm in arms:
            rows = _first_repeat(arm)
            warm_up = sum(not row["counted"] for row in rows)
            window = max(3, len(rows) // 20)
            colour, line, width = _style(arm)
            axes.plot(
                range(1, len(rows) + 1),
                moving_hit_rate(rows, window),
                color=colour,
                ls=line,
                lw=width,
                label=arm["name"],
            )
        if warm_up:
            axes.axvspan(0.5, warm_up + 0.5, color=_TEXT, alpha=0.07, lw=0, zorder=0)
            axes.text(0.8, 0.97, "warm-up", va="top", fontsize=9)
        axes.set_xlabel("calls, in the order in which they started")
        axes.set_ylabel("hit rate")
        axes.set_ylim(-0.02, 1.02)
        axes.set_xlim(left=0.5)
        _legend(axes)
        return _svg(figure, "hits")


def moving_hit_rate(rows: Sequence[Row], window: int) -> list[float]:
    """Cached share of the prompt tokens of each call and the ``window - 1`` before it."""
    rates = []
    for end in range(1, len(rows) + 1):
        among = rows[max(0, end - window) : end]
        prompt = sum(row["prompt_tokens"] for row in among)
        rates.append(sum(row["cached_tokens"] for row in among) / prompt)
    return rates


def tier_timeline(arms: Sequence[Arm]) -> str:
    """Where each agent's prefix was when it was called, in the first repeat: a plot per arm.

    The agents called most and the first calls only, where there are many.
    """
    from matplotlib.collections import PolyCollection
    from matplotlib.patches import Patch

    agents = shown_agents(arms[0]["repeats"][0]["calls"])
    height = len(arms) * (0.75 + 0.24 * len(agents)) + 0.8
    with _drawing(height, rows=len(arms)) as (figure, several):
        tiers = list(TIER_COLOURS)
        used: set[str] = set()
        last_end_s = 0.0
        for arm, axes in zip(arms, several, strict=True):
            rows = _first_repeat(arm)[:MAX_CALLS]
            last_end_s = max(last_end_s, *(row["started_s"] + row["total_s"] for row in rows))
            boxes: defaultdict[str, list[list[tuple[float, float]]]] = defaultdict(list)
            for place, agent in enumerate(agents):
                own = [row for row in rows if _agent(row) == agent]
                for row, bottom, thickness in _in_lanes(own):
                    for tier, low, high in _segments(row, place + bottom, thickness, tiers):
                        left, right = row["started_s"], row["started_s"] + row["total_s"]
                        boxes[tier].append([(left, low), (right, low), (right, high), (left, high)])
            for tier, shapes in boxes.items():
                axes.add_collection(
                    PolyCollection(shapes, facecolor=TIER_COLOURS[tier], edgecolor="none")
                )
            used |= boxes.keys()
            counted_from_s = arm["repeats"][0]["counted_from_s"]
            if counted_from_s:
                axes.axvspan(0, counted_from_s, color=_TEXT, alpha=0.07, lw=0, zorder=0)
            axes.set_ylim(len(agents), 0)
            axes.set_yticks([place + 0.5 for place in range(len(agents))], _labels(agents))
            axes.tick_params(axis="y", length=0, labelsize=8)
            axes.grid(False)
            axes.set_title(arm["name"], loc="left", fontsize=10, fontweight="bold")
            axes.set_xlim(left=0)
        several[-1].set_xlim(0, last_end_s * 1.01)
        several[-1].set_xlabel("seconds from the beginning of the run")
        figure.legend(
            handles=[
                Patch(color=TIER_COLOURS[tier], label=TIER_TITLES[tier])
                for tier in tiers
                if tier in used
            ],
            loc="outside upper left",
            ncols=4,
            frameon=False,
        )
        return _svg(figure, "timeline")


def shown_agents(rows: Sequence[Row]) -> list[tuple[str, str]]:
    """The agents with the most calls, in the order of their first ones."""
    calls: dict[tuple[str, str], int] = {}
    for row in sorted(rows, key=lambda row: row["started_s"]):
        calls[_agent(row)] = calls.get(_agent(row), 0) + 1
    most = set(sorted(calls, key=lambda agent: -calls[agent])[:MAX_AGENTS])
    return [agent for agent in calls if agent in most]


def prefix_shares(row: Row) -> dict[str, float]:
    """Where an agent's fixed prefix was when it was called, in shares that add up to 1.

    What is cached of a prompt is its beginning; what is on the device comes before what is on the
    host, and that before what is in storage.
    """
    fixed_tokens = left = row["fixed_tokens"]
    if not fixed_tokens:
        return {"nowhere": 1.0, "device": 0.0, "host": 0.0, "storage": 0.0}
    shares: dict[str, float] = {}
    for tier in ("device", "host", "storage"):
        there = min(left, row[f"{tier}_tokens"])
        shares[tier] = there / fixed_tokens
        left -= there
    return {**shares, "nowhere": left / fixed_tokens}


def _first_repeat(arm: Arm) -> list[Row]:
    """Its calls, in the order in which they started."""
    return sorted(arm["repeats"][0]["calls"], key=lambda row: row["started_s"])


def _agent(row: Row) -> tuple[str, str]:
    return row["client_id"], row["agent_id"]


def _labels(agents: Sequence[tuple[str, str]]) -> list[str]:
    several_clients = len({client for client, _ in agents}) > 1
    return [f"{client} {agent}" if several_clients else agent for client, agent in agents]


def _in_lanes(rows: Sequence[Row]) -> list[tuple[Row, float, float]]:
    """Calls of one agent that overlap, side by side: row, offset and thickness in its line."""
    ends: list[float] = []
    lanes: list[int] = []
    for row in rows:
        start, end = row["started_s"], row["started_s"] + row["total_s"]
        lane = next((number for number, free in enumerate(ends) if free <= start), len(ends))
        if lane == len(ends) and lane < _MAX_LANES:
            ends.append(end)
        lane = min(lane, _MAX_LANES - 1)
        ends[lane] = max(ends[lane], end)
        lanes.append(lane)
    thickness = 0.8 / max(1, len(ends))
    return [(row, 0.1 + lane * thickness, thickness) for row, lane in zip(rows, lanes, strict=True)]


def _segments(
    row: Row, bottom: float, thickness: float, tiers: Sequence[str]
) -> list[tuple[str, float, float]]:
    shares = prefix_shares(row)
    edges = list(accumulate((shares[tier] for tier in tiers), initial=0.0))
    return [
        (tier, bottom + low * thickness, bottom + high * thickness)
        for tier, (low, high) in zip(tiers, pairwise(edges), strict=True)
        if high > low
    ]


def _counted(arm: Arm) -> list[Row]:
    return [row for repeat in arm["repeats"] for row in repeat["calls"] if row["counted"]]


def _style(arm: Arm) -> tuple[str, str, float]:
    return ARM_STYLES.get(arm["name"], _OTHER_STYLE)


@contextmanager
def _drawing(height: float, rows: int = 1) -> Iterator[tuple[Any, list[Any]]]:
    """A figure and its axes, one below the other, in the report's style inside the block."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context(_SETTINGS):
        figure = Figure(figsize=(_WIDTH, height), layout="constrained")
        yield figure, list(figure.subplots(rows, 1, sharex=True, squeeze=False)[:, 0])


def _legend(axes: Any) -> None:
    axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), fontsize=9, frameon=False)


def _svg(figure: Any, name: str) -> str:
    figure.patch.set_alpha(0.0)
    for axes in figure.axes:
        axes.patch.set_alpha(0.0)
    written = StringIO()
    figure.savefig(written, format="svg", metadata={"Date": None, "Creator": None})
    return _inline(written.getvalue(), name)


def _inline(svg: str, name: str) -> str:
    """A plot as part of a page: no prologue, ids of its own, the page's colour for text."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\bid="([^"]+)"', rf'id="{name}-\1"', svg)
    svg = re.sub(r'(url\(|href=")#', rf"\1#{name}-", svg)
    svg = svg.replace(_TEXT, "currentColor")
    # The size is for the page to say; the viewBox keeps the proportions.
    return re.sub(r'<svg ([^>]*?)height="[^"]*"([^>]*?)width="[^"]*"', r"<svg \1\2", svg, count=1)
