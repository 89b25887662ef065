"""Engines' reports in the form of the wire."""

from __future__ import annotations

from collections.abc import Iterable

from kvflow.protocol import EngineSummary, PrefixPlacement, RecentFigures
from kvflow.server.engine_reports import ReportingEngine
from kvflow.server.overview_models import AgentPlacement, Place, PlacementOnEngine
from kvflow.server.report_history import Slot, quantile_s

__all__ = ["agent_placement", "engine_summary", "figures"]

_ENGINES_SHOWN = 4


def figures(slot: Slot) -> RecentFigures:
    """What was counted, and the quantiles that follow from it."""
    counts = slot.counts
    prompt, cached = counts["prompt_tokens"], counts["cached_tokens"]
    times = (slot.bounds_s, slot.first_token_counts)
    return RecentFigures(
        hit_rate=cached / prompt if prompt else None,
        first_token_p50_s=quantile_s(*times, 0.5),
        first_token_p95_s=quantile_s(*times, 0.95),
        **counts,
    )


def engine_summary(engine: ReportingEngine, now_s: float) -> EngineSummary:
    """An engine's last report, without where the prefixes are."""
    report = engine.report
    return EngineSummary(
        model=report.model,
        engine_version=report.engine_version,
        plugin_version=report.plugin_version,
        uptime_s=report.uptime_s,
        reported_ago_s=now_s - engine.reported_at_s,
        lease_left_s=engine.lease_left_s(now_s),
        waiting_requests=report.waiting_requests,
        running_requests=report.running_requests,
        device=report.device,
        host=report.host,
        storage=report.storage,
        agents=len(engine.agents),
        agents_known=report.agents_known,
        totals=report.totals,
        recent=figures(engine.recent.sum(now_s)),
    )


def agent_placement(
    agent_id: str, found: Iterable[tuple[ReportingEngine, PrefixPlacement]]
) -> AgentPlacement:
    """Where one agent's prefix is, the engine first that has most of it nearest."""
    known = sorted(found, key=lambda pair: (_nearness(pair[1]), pair[0].engine_id))
    return AgentPlacement(
        agent_id=agent_id,
        place=_place(known[0][1]) if known else "unknown",
        engine_count=len(known),
        engines=[
            PlacementOnEngine(
                engine_id=engine.engine_id,
                tokens=one.tokens,
                device_tokens=one.device_tokens,
                host_tokens=one.host_tokens,
                storage_tokens=one.storage_tokens,
            )
            for engine, one in known[:_ENGINES_SHOWN]
        ],
    )


def _nearness(one: PrefixPlacement) -> tuple[int, int, int]:
    return (-one.device_tokens, -one.host_tokens, -one.storage_tokens)


def _place(one: PrefixPlacement) -> Place:
    """Where most of it is; the nearer tier where two have as much."""
    parts: dict[Place, int] = {
        "device": one.device_tokens,
        "host": one.host_tokens,
        "storage": one.storage_tokens,
    }
    parts["gone"] = max(0, one.tokens - sum(parts.values()))
    if not one.tokens:
        return "gone"
    return max(parts, key=lambda place: parts[place])
