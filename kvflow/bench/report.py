"""The result as one HTML page that needs nothing else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from typing import Any, Final

from kvflow.bench.charts import (
    MAX_AGENTS,
    MAX_CALLS,
    hit_rate_chart,
    shown_agents,
    tier_timeline,
    ttft_chart,
)
from kvflow.bench.summary import METRICS, TIERS
from kvflow.errors import EnvironmentProblemError

__all__ = ["headline", "render_report", "require_report_packages"]

_UNKNOWN: Final = "\N{EN DASH}"
_TEMPLATE: Final = "report.html.j2"
_RATIO_METRICS: Final = ("wall_s", "ttft_p50_s", "ttft_p99_s")


def require_report_packages() -> None:
    """Refuse before a run rather than after it.

    Raises:
        EnvironmentProblemError: matplotlib or jinja2 is missing.
    """
    for package in ("jinja2", "matplotlib"):
        if find_spec(package) is None:
            raise EnvironmentProblemError(
                f"the HTML report needs the package {package}, which is not installed",
                "pip install 'kvflow[bench]', or leave out --html",
            )


def render_report(result: Mapping[str, Any]) -> str:
    """Make the page from what ``BenchResult.to_json`` gave, or the file written from it."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("kvflow.bench", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"percent": _percent, "seconds": _seconds, "count": _count}
    arms: Sequence[Mapping[str, Any]] = result["arms"]
    compared_to = {one["to"] for one in result["ratios"]}
    first_calls = arms[0]["repeats"][0]["calls"]
    return environment.get_template(_TEMPLATE).render(
        result=result,
        arms=arms,
        headline=headline(result),
        ratio_tables=[(METRICS[key].title, _ratio_table(result, key)) for key in _RATIO_METRICS],
        references=[arm["name"] for arm in arms if arm["name"] in compared_to],
        tiers=[
            tier
            for tier in TIERS
            if tier == "device" or any(arm["summary"]["hit_rate_by_tier"][tier] for arm in arms)
        ],
        ttft=ttft_chart(arms),
        hits=hit_rate_chart(arms),
        timeline=tier_timeline(arms),
        shown={
            "agents": len(shown_agents(first_calls)),
            "all_agents": result["settings"]["agents"],
            "calls": min(MAX_CALLS, len(first_calls)),
            "all_calls": len(first_calls),
            "cut": len(first_calls) > MAX_CALLS or result["settings"]["agents"] > MAX_AGENTS,
        },
        alt={
            "ttft": _ttft_in_words(arms),
            "hits": _hits_in_words(arms),
            "timeline": _tiers_in_words(arms),
        },
    )


def headline(result: Mapping[str, Any]) -> str:
    """The result in one plain sentence: the last KVFlow arm against the best of the others."""
    arms = {one["name"]: one for one in result["arms"]}
    kvflow = next((name for name in ("kvflow", "kvflow-eviction") if name in arms), None)
    stock = [one["to"] for one in result["ratios"] if one["arm"] == kvflow and one["to"] != "limit"]
    if kvflow is None or not stock:
        return "There is nothing to compare KVFlow with: name more arms."
    best = min(stock, key=lambda name: arms[name]["summary"]["wall_s"]["median"])
    ratio = next(one for one in result["ratios"] if (one["arm"], one["to"]) == (kvflow, best))
    mine, theirs = arms[kvflow]["summary"], arms[best]["summary"]
    return (
        f"{arms[kvflow]['title']} found {_percent(mine['hit_rate'])} of the prompt tokens in "
        f"cache, {arms[best]['title']} (the fastest of the others) "
        f"{_percent(theirs['hit_rate'])}; end to end it was {ratio['wall_s']['median']:.2f} times "
        f"as fast, at the median first token {ratio['ttft_p50_s']['median']:.2f} times."
    )


def _ratio_table(result: Mapping[str, Any], key: str) -> dict[str, dict[str, Any]]:
    table: dict[str, dict[str, Any]] = {}
    for one in result["ratios"]:
        table.setdefault(one["arm"], {})[one["to"]] = one[key]
    return table


def _ttft_in_words(arms: Sequence[Mapping[str, Any]]) -> str:
    return "Time to first token, share of calls by time. Medians: " + ", ".join(
        f"{arm['name']} {_seconds(arm['summary']['ttft_p50_s'])}" for arm in arms
    )


def _hits_in_words(arms: Sequence[Mapping[str, Any]]) -> str:
    return "Hit rate over the calls of the first repeat. Over all counted calls: " + ", ".join(
        f"{arm['name']} {_percent(arm['summary']['hit_rate'])}" for arm in arms
    )


def _tiers_in_words(arms: Sequence[Mapping[str, Any]]) -> str:
    return (
        "Where each agent's prefix was when it was called, a row per agent. Of all prompt tokens, "
        + "; ".join(
            f"{arm['name']}: "
            + ", ".join(
                f"{_percent(share)} {tier}"
                for tier, share in arm["summary"]["hit_rate_by_tier"].items()
            )
            for arm in arms
        )
    )


def _percent(share: float | None) -> str:
    return _UNKNOWN if share is None else f"{share:.1%}"


def _seconds(value: float | None) -> str:
    if value is None:
        return _UNKNOWN
    return f"{value * 1000:.1f} ms" if value < 0.1 else f"{value:.2f} s"


def _count(value: float | None) -> str:
    return _UNKNOWN if value is None else f"{value:,.0f}"
