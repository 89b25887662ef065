"""Runs a group of arms: their engines side by side, and one scenario after the other on all."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.gpu.engines import engine_flags
from benchmarks.gpu.floor import Rates, floors
from benchmarks.gpu.grid import Play
from benchmarks.gpu.shapes import SHAPES, write_config
from benchmarks.gpu.units import ARM_OF, ArmGroup, arm_tiers, scenario_calls, scenario_needs
from kvflow.bench.needs import ClientPriorities
from kvflow.bench.progress import run_line
from kvflow.bench.prompts import TokenPrompts
from kvflow.bench.result import ArmResult, BenchResult
from kvflow.bench.rows import Run
from kvflow.bench.running import ArmSetup, RunningArm
from kvflow.bench.vocabulary import read_vocabulary
from kvflow.engine.device import ConcreteDevice
from kvflow.workload import build_workload

__all__ = ["Session", "SessionSetup", "running_session"]

_MOST_BOUNDED_CALLS = 200
"""Of larger workloads the clairvoyant bound is not worked out: it would take too long."""


@dataclass(frozen=True, slots=True)
class SessionSetup:
    """Where and how; ``folder`` is for logs, configs and the storage tier."""

    device: ConcreteDevice
    folder: Path
    rates: Rates
    environment: Mapping[str, Any]
    say: Callable[[str], None]


class Session:
    """The engines of a group, up and warm."""

    def __init__(
        self, group: ArmGroup, setup: SessionSetup, engines: Mapping[str, RunningArm], model: Path
    ) -> None:
        self._group = group
        self._setup = setup
        self._engines = engines
        self._model = model

    def play(self, play: Play) -> dict[str, Any]:
        """Run one scenario on all arms, repeat by repeat in turns; the result file's content.

        Raises:
            EnvironmentProblemError: an engine fails.
        """
        scenario, bench = play.scenario, self._group.bench
        started_at = datetime.now(UTC).isoformat(timespec="seconds")
        begun_s = time.monotonic()
        workload = build_workload(scenario)
        needs = scenario_needs(scenario)
        prompts = TokenPrompts(read_vocabulary(str(self._model), scenario.seed))
        runs: dict[str, list[Run]] = {name: [] for name in self._engines}
        for repeat in range(1, play.repeats + 1):
            for name, engine in self._engines.items():
                run = engine.run(
                    workload,
                    prompts,
                    repeat,
                    lambda _row: None,
                    priority=ClientPriorities(needs.agents).of if ARM_OF[name].priorities else None,
                    with_bound=repeat == 1 and needs.calls <= _MOST_BOUNDED_CALLS,
                )
                runs[name].append(run)
                self._setup.say(run_line(ARM_OF[name], run))
        result = BenchResult(
            scenario=scenario,
            arms=[
                ArmResult(
                    arm=ARM_OF[name],
                    cache=engine.setup.cache,
                    runs=runs[name],
                    flags=self.without_folder(engine.flags),
                    engine_start_s=engine.engine_start_s,
                    actual_device_tokens=engine.device_tokens(),
                )
                for name, engine in self._engines.items()
            ],
            environment=self._setup.environment,
            settings={
                "model": bench.model,
                "device": self._setup.device,
                "repeats": play.repeats,
                "calls": needs.calls,
            },
            started_at=started_at,
            elapsed_s=time.monotonic() - begun_s,
        )
        return {
            "piece": bench.piece,
            "bench": bench.name,
            "model": bench.model,
            "note": bench.note,
            **result.to_json(),
            "arithmetic_floor": floors(
                SHAPES[bench.model], scenario_calls(scenario), self._setup.rates
            ),
        }

    def without_folder(self, flags: Sequence[str]) -> list[str]:
        """Flags with the model's name in place of where it is on this machine."""
        return [self._group.bench.model if flag == str(self._model) else flag for flag in flags]


@contextmanager
def running_session(group: ArmGroup, setup: SessionSetup) -> Iterator[Session]:
    """Start the engines of a group; all of them are gone after the block.

    Raises:
        EnvironmentProblemError: an engine does not start.
    """
    bench = group.bench
    model = write_config(
        setup.folder / "models" / bench.model,
        bench.model,
        "bfloat16" if setup.device == "cuda" else "float32",
    )
    tiers = arm_tiers(bench)
    needs = [scenario_needs(play.scenario) for play in bench.plays]
    largest = max(one.largest_call_tokens for one in needs)
    flags = engine_flags(
        setup.device,
        dummy=True,
        max_running=bench.max_running,
        # Room for SGLang's own extra tokens per request.
        context_tokens=largest + 64,
    )
    with ExitStack() as stack:
        engines: dict[str, RunningArm] = {}
        for name in group.arms:
            setup.say(f"  starting SGLang for {name}")
            arm = ArmSetup(
                arm=ARM_OF[name],
                cache=tiers[name],
                model=str(model),
                device=setup.device,
                engine_args=flags,
                env={},
                folder=setup.folder,
                storage_dir=setup.folder / "storage" / name,
                warm_up_tokens=max(one.largest_prompt_tokens for one in needs),
            )
            engines[name] = stack.enter_context(RunningArm(arm, setup.say))
        prompts = TokenPrompts(read_vocabulary(str(model), 0))
        for engine in engines.values():
            engine.warm_up(prompts)
        yield Session(group, setup, engines, model)
