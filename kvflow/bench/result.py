"""Everything a benchmark found out, and how it is written down."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Final

from kvflow.bench.arms import ArmCache, BenchArm
from kvflow.bench.rows import Run
from kvflow.bench.summary import differences, ratios, summarize
from kvflow.workload import Scenario

__all__ = ["ArmResult", "BenchResult"]

FORMAT: Final = 1
_DIFFERENCES_SHOWN: Final = 20


@dataclass(frozen=True, slots=True)
class ArmResult:
    """An arm's runs, and what they ran on.

    Attributes:
        actual_device_tokens: size of the device pool as the engine reports it; None if it does not.
        flags: SGLang's command line.
    """

    arm: BenchArm
    cache: ArmCache
    runs: Sequence[Run]
    flags: Sequence[str]
    engine_start_s: float
    actual_device_tokens: int | None = None

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.arm.name,
            "title": self.arm.title,
            "settings": {
                **asdict(self.cache),
                "actual_device_tokens": self.actual_device_tokens,
                "kvflow": self.arm.uses_kvflow,
                "prefetch": self.arm.prefetch,
                "priorities": self.arm.priorities,
            },
            "flags": list(self.flags),
            "engine_start_s": self.engine_start_s,
            "summary": summarize(self.runs),
            "repeats": [_run_json(run) for run in self.runs],
        }


@dataclass(frozen=True, slots=True)
class BenchResult:
    """The result. ``started_at`` is UTC in ISO 8601; ``settings`` are those of the run."""

    scenario: Scenario
    arms: Sequence[ArmResult]
    environment: Mapping[str, Any]
    settings: Mapping[str, Any]
    started_at: str
    elapsed_s: float
    notes: Sequence[str] = field(default=())

    @property
    def runs(self) -> dict[str, Sequence[Run]]:
        """By arm, in the order of the arms."""
        return {one.arm.name: one.runs for one in self.arms}

    def to_json(self) -> dict[str, Any]:
        """Everything that was measured, and all that is needed to measure it again.

        ``arithmetic_floor`` stays None here; who knows the machine's rates may fill it in.
        """
        different = differences(self.runs)
        several = sum(len(one.runs) for one in self.arms) > 1
        references = [one.arm.name for one in self.arms if not one.arm.uses_kvflow]
        return {
            "format": FORMAT,
            "started_at": self.started_at,
            "elapsed_s": round(self.elapsed_s, 1),
            "environment": dict(self.environment),
            "scenario": self.scenario.model_dump(mode="json"),
            "settings": dict(self.settings),
            "notes": list(self.notes),
            "outputs_identical": not different if several else None,
            "differences": {
                "count": len(different),
                "first": [asdict(one) for one in different[:_DIFFERENCES_SHOWN]],
            },
            "ratios": ratios(self.runs, references),
            "arithmetic_floor": None,
            "arms": [one.to_json() for one in self.arms],
        }


def _run_json(run: Run) -> dict[str, Any]:
    return {
        "repeat": run.repeat,
        "wall_s": run.wall_s,
        "counted_from_s": run.counted_from_s,
        "metrics_delta": dict(run.metrics_delta),
        "bound_hit_tokens": run.counted_of(run.bound_hits),
        "mirrored_hit_tokens": run.counted_of(run.mirrored_hits),
        "refusals": list(run.refusals),
        "calls": [row.to_json() for row in run.calls],
    }
