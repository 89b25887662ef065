"""The demo's result for people (a table and a sentence) and for programs (JSON)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, astuple
from typing import TYPE_CHECKING, Any, Final

from kvflow.demo.arms import PAGE_SIZE, Setting
from kvflow.demo.runner import MODEL, SEED
from kvflow.demo.summary import FIRST_WARM_ROUND, ArmResult, Comparison, DemoResult
from kvflow.demo.team import REQUESTS, TEAM
from kvflow.demo.workflow import MAX_OUTPUT_TOKENS

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

__all__ = ["render", "sentence", "table_rows", "tier_rows", "to_json"]

FORMAT: Final = 1
_COLUMNS: Final = ("", "hit\nrate", "best\npossible", "TTFT\np50", "TTFT\np95", "wall\n")
_TIER_COLUMNS: Final = ("", "from\ndevice", "loaded\nahead", "used\n", "wasted\n", "late\n")


def render(result: DemoResult, console: Console) -> None:
    """Print the tables, what their columns mean, and the sentence."""
    table = _table(_COLUMNS)
    for setting, rows in table_rows(result):
        table.add_row(f"[bold]{setting.name}:[/bold]")
        for row in rows:
            table.add_row(*row)
    console.print()
    console.print(table)
    if tiers := tier_rows(result):
        table = _table(_TIER_COLUMNS)
        for row in tiers:
            table.add_row(*row)
        console.print()
        console.print(table)
    for line in (*_notes(result), "", sentence(result)):
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def table_rows(result: DemoResult) -> list[tuple[Setting, list[tuple[str, ...]]]]:
    """The table's cells, a group per setting in the order in which they ran."""
    groups: dict[str, tuple[Setting, list[tuple[str, ...]]]] = {}
    for one in result.arms:
        optimum = one.optimal_hit_rate()
        _, rows = groups.setdefault(one.arm.setting.name, (one.arm.setting, []))
        rows.append(
            (
                one.arm.title,
                f"{one.hit_rate():.3f}",
                "unknown" if optimum is None else f"{optimum:.3f}",
                f"{one.ttft_s(50):.2f} s",
                f"{one.ttft_s(95):.2f} s",
                f"{one.wall_s:.1f} s",
            )
        )
    return list(groups.values())


def tier_rows(result: DemoResult) -> list[tuple[str, ...]]:
    """Cells of the second table: where hits were, for the arms that have a host tier."""
    rows: list[tuple[str, ...]] = []
    for one in result.arms:
        if not one.arm.setting.host_tokens:
            continue
        tokens = [""] * 4
        if one.prefetched is not None:
            tokens = [f"{count:,}" for count in astuple(one.prefetched)]
        rows.append((one.arm.title, f"{one.served_from_device():.1%}", *tokens))
    return rows


def sentence(result: DemoResult) -> str:
    """The whole result in one plain sentence."""
    parts = [_compared(comparison) for comparison in result.comparisons]
    if result.outputs_identical is None:
        parts.append("with one arm there are no outputs to compare")
    elif result.outputs_identical:
        parts.append(f"all {len(result.arms)} arms gave identical outputs")
    else:
        first = result.differences[0]
        parts.append(
            f"the outputs are NOT identical ({len(result.differences)} differ, first the "
            f"{first.agent_id}'s in round {first.round}: {first.arm} against {first.first_arm})"
        )
    text = "; ".join(parts)
    return f"{text[0].upper()}{text[1:]}."


def to_json(result: DemoResult) -> dict[str, Any]:
    """Everything that was measured, and all that is needed to measure it again."""
    settings = {one.arm.setting.name: one.arm.setting for one in result.arms}
    return {
        "format": FORMAT,
        "started_at": result.started_at,
        "elapsed_s": round(result.elapsed_s, 1),
        "versions": dict(result.versions),
        "hardware": dict(result.hardware),
        "settings": {
            "model": MODEL,
            "rounds": result.arms[0].rounds,
            "agents": len(TEAM),
            "requests": list(REQUESTS[: result.arms[0].rounds]),
            "max_output_tokens": MAX_OUTPUT_TOKENS,
            "temperature": 0,
            "seed": SEED,
            "page_size": PAGE_SIZE,
            "median_prompt_tokens": result.prompt_tokens_median,
            "measured_from_round": FIRST_WARM_ROUND,
            "caches": {name: _setting_json(setting) for name, setting in settings.items()},
        },
        "arms": [_arm_json(one) for one in result.arms],
        "comparisons": [_comparison_json(one) for one in result.comparisons],
        "outputs_identical": result.outputs_identical,
        "differences": [
            {"round": one.round, "agent_id": one.agent_id, "arms": [one.first_arm, one.arm]}
            for one in result.differences
        ],
    }


def _compared(comparison: Comparison) -> str:
    stock, kvflow = comparison.stock, comparison.kvflow
    optimum = kvflow.optimal_hit_rate()
    best = "" if optimum is None else f" (best any policy could: {optimum:.1%})"
    return (
        f"{kvflow.arm.title} found {kvflow.hit_rate():.1%} of the prompt tokens in cache{best} "
        f"where {stock.arm.title} found {stock.hit_rate():.1%}, and gave the first token "
        f"{comparison.ttft_p50_ratio:.2f} times as fast (p95: {comparison.ttft_p95_ratio:.2f} "
        f"times) and the whole run {comparison.wall_ratio:.2f} times as fast"
    )


def _table(columns: Sequence[str]) -> Table:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False, collapse_padding=True)
    for column in columns:
        table.add_column(column, justify="right" if column else "left", no_wrap=True)
    return table


def _notes(result: DemoResult) -> list[str]:
    rounds = result.arms[0].rounds
    lines = [
        f"Hit rate (cached share of the prompt tokens) and TTFT: rounds {FIRST_WARM_ROUND} to "
        f"{rounds}; wall: all {rounds} rounds, without the engine's start.",
        "Best possible: the clairvoyant optimum for a cache of all tiers together, in tokens.",
    ]
    if any(one.arm.setting.host_tokens for one in result.arms):
        lines.append(
            "From device: calls that hit and loaded nothing from the host, of those in rounds "
            f"{FIRST_WARM_ROUND} to {rounds}."
        )
    if any(one.arm.prefetch for one in result.arms):
        lines.append(
            "Loaded ahead: tokens copied to the device before a call asked for them, in all "
            "rounds; wasted: evicted unread; late: used, but not there in time."
        )
    last_arms = {one.arm.setting.name: one for one in result.arms}
    return lines + [_setting_note(one) for one in last_arms.values()]


def _setting_note(one: ArmResult) -> str:
    setting = one.arm.setting
    text = f"{setting.name}: {setting.device_tokens:,} tokens on the device"
    if setting.host_tokens:
        text += f", {setting.host_tokens:,} on the host"
    text += f"; {setting.description}."
    mirrored = one.mirrored_hit_rate()
    if mirrored is not None:
        text += (
            " The host keeps a copy of what is on the device; the optimum for a cache of the "
            f"host's size alone is {mirrored:.3f}."
        )
    return text


def _setting_json(setting: Setting) -> dict[str, Any]:
    return {
        "description": setting.description,
        "device_tokens": setting.device_tokens,
        "hicache_ratio": setting.hicache_ratio,
        "host_tokens": setting.host_tokens,
    }


def _arm_json(one: ArmResult) -> dict[str, Any]:
    rounds = range(1, one.rounds + 1)
    return {
        "name": one.arm.name,
        "title": one.arm.title,
        "setting": one.arm.setting.name,
        "kvflow": one.arm.uses_kvflow,
        "prefetch": one.arm.prefetch,
        "hit_rate": one.hit_rate(),
        "optimal_hit_rate": one.optimal_hit_rate(),
        "mirrored_hit_rate": one.mirrored_hit_rate(),
        "served_from_device": one.served_from_device(),
        "device_share": one.device_share(),
        "prefetched_tokens": None if one.prefetched is None else asdict(one.prefetched),
        "ttft_p50_s": one.ttft_s(50),
        "ttft_p95_s": one.ttft_s(95),
        "wall_s": one.wall_s,
        "hit_rate_all_rounds": one.hit_rate(1),
        "optimal_hit_rate_all_rounds": one.optimal_hit_rate(1),
        "ttft_p50_all_rounds_s": one.ttft_s(50, 1),
        "ttft_p95_all_rounds_s": one.ttft_s(95, 1),
        "rounds": [
            {
                "round": number,
                "hit_rate": one.hit_rate(number, number),
                "optimal_hit_rate": one.optimal_hit_rate(number, number),
                "wall_s": one.round_wall_s(number),
            }
            for number in rounds
        ],
        "engine_start_s": one.engine_start_s,
        "engine_flags": list(one.engine_flags),
        "kvflow_metrics": dict(one.kvflow_metrics),
        "steps_reported": one.steps_reported,
        "mispredictions": one.mispredictions,
        "calls": _calls_json(one),
    }


def _calls_json(one: ArmResult) -> list[Mapping[str, Any]]:
    optimal: Sequence[int | None] = one.optimal_hits or [None] * len(one.records)
    return [
        {
            "round": record.round,
            "agent_id": record.agent_id,
            "prompt_tokens": record.answer.prompt_tokens,
            "cached_tokens": record.answer.cached_tokens,
            "host_tokens": record.answer.host_tokens,
            "optimal_cached_tokens": best,
            "output_tokens": record.answer.output_tokens,
            "ttft_s": record.answer.ttft_s,
            "total_s": record.answer.total_s,
            "output": record.answer.text,
            "output_sha256": record.answer.output_hash,
        }
        for record, best in zip(one.records, optimal, strict=True)
    ]


def _comparison_json(one: Comparison) -> dict[str, Any]:
    return {
        "setting": one.stock.arm.setting.name,
        "arms": [one.stock.arm.name, one.kvflow.arm.name],
        "hit_rate_difference": one.kvflow.hit_rate() - one.stock.hit_rate(),
        "ttft_p50_ratio": one.ttft_p50_ratio,
        "ttft_p95_ratio": one.ttft_p95_ratio,
        "wall_ratio": one.wall_ratio,
    }
