"""Runs a scenario on all arms: engines that take turns, repeat by repeat."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from types import MappingProxyType
from typing import Final

from kvflow.bench.arms import ArmCache, BenchArm, arm_cache
from kvflow.bench.drive import Prompts
from kvflow.bench.needs import ClientPriorities, WorkloadNeeds, workload_needs
from kvflow.bench.progress import Progress
from kvflow.bench.prompts import TextPrompts, TokenPrompts
from kvflow.bench.result import ArmResult, BenchResult
from kvflow.bench.rows import Run
from kvflow.bench.running import SEED, ArmSetup, RunningArm
from kvflow.bench.vocabulary import read_vocabulary
from kvflow.demo.log_folder import log_folder
from kvflow.engine.device import Device, choose_device, torch_is_cpu_build, visible_gpus
from kvflow.engine.machine import available_bytes, hardware, versions
from kvflow.errors import InvalidInputError
from kvflow.workload import Scenario, Workload, build_workload

__all__ = ["BenchOptions", "run_bench"]

# An idle engine with a small model in float32 on the CPU takes about this much, besides its pools.
_CPU_ENGINE_BYTES: Final = 3_000_000_000
# SGLang lets a request in only where this much is left over (0.5.23, scheduler.py, and a page by
# schedule_policy.py).
_SPARE_TOKENS: Final = 16
_NOTHING: Final[Mapping[str, str]] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class BenchOptions:
    """What to run.

    Attributes:
        base: the folder that the scenario's trace is relative to.
        repeats: how often each arm runs the whole workload.
        model: as for ``kvflow engine``.
        engines_at_once: engines alive at the same time; those of one group take turns, repeat by
            repeat, and groups follow each other. None: on the CPU as many as fit into memory, on
            CUDA one.
        engine_args, env: SGLang flags and variables for the engines of all arms.
        storage_dir: where storage tiers are kept; the folder for temporary files if None.
        keep_logs: keep the logs of engines and services although nothing went wrong.

    Raises:
        InvalidInputError: a number is out of range.
    """

    scenario: Scenario
    arms: tuple[BenchArm, ...]
    base: Path | None = None
    repeats: int = 3
    device: Device = "auto"
    model: str = "smollm2"
    engines_at_once: int | None = None
    engine_args: tuple[str, ...] = ()
    env: Mapping[str, str] = field(default_factory=lambda: _NOTHING)
    storage_dir: Path | None = None
    keep_logs: bool = False

    def __post_init__(self) -> None:
        if self.repeats < 1:
            raise InvalidInputError(["--repeats"], f"{self.repeats} is too few; use 1 or more")
        if self.engines_at_once is not None and self.engines_at_once < 1:
            raise InvalidInputError(
                ["--engines-at-once"], f"{self.engines_at_once} is too few; use 1 or more"
            )
        if not self.arms:
            raise InvalidInputError(["--arms"], "no arm is named")


def run_bench(options: BenchOptions, progress: Progress) -> BenchResult:
    """Run all arms. Leaves no process behind, however it ends.

    Raises:
        EnvironmentProblemError: an engine or a service cannot be started, or broke off; the logs
            are kept then.
        InvalidInputError: the workload does not fit the scenario's cache.
    """
    started_at = datetime.now(UTC).isoformat(timespec="seconds")
    start_s = time.monotonic()
    scenario = options.scenario
    workload = build_workload(scenario, options.base)
    needs = workload_needs(workload.workflows(), scenario.cache.page_tokens)
    _check_fits(scenario, workload, needs)
    gpus = visible_gpus()
    device = choose_device(options.device, gpus, torch_is_cpu_build())
    at_once = options.engines_at_once
    if at_once is None:
        at_once = 1 if device == "cuda" else _engines_that_fit(available_bytes())
    results: list[ArmResult] = []
    with ExitStack() as stack:
        folder = stack.enter_context(log_folder("bench", keep=options.keep_logs))
        storage = Path(
            stack.enter_context(
                TemporaryDirectory(prefix="kvflow-storage-", dir=options.storage_dir)
            )
        )
        bench = _Bench(options, workload, needs, folder, storage, progress)
        for group in _groups(options.arms, at_once):
            results += bench.run_group(group)
        if options.keep_logs:
            progress.note(f"Logs are in {folder}")
    notes = [note for one in results for note in _notes(one)]
    for note in notes:
        progress.note(note)
    return BenchResult(
        scenario=scenario,
        arms=results,
        environment={
            "versions": versions(),
            "hardware": hardware(device, gpus if device == "cuda" else ()),
            "seeds": {"scenario": scenario.seed, "engine": SEED},
        },
        settings={
            "model": options.model,
            "device": device,
            "repeats": options.repeats,
            "engines_at_once": at_once,
            "engine_args": list(options.engine_args),
            "env": dict(options.env),
            "concurrency": workload.concurrency,
            "warm_up_calls": workload.warm_up_calls,
            "needs": {name: value for name, value in asdict(needs).items() if name != "agents"},
            "agents": len(needs.agents),
        },
        started_at=started_at,
        elapsed_s=time.monotonic() - start_s,
        notes=notes,
    )


@dataclass(frozen=True, slots=True)
class _Bench:
    options: BenchOptions
    workload: Workload
    needs: WorkloadNeeds
    folder: Path
    storage: Path
    progress: Progress

    def run_group(self, arms: Sequence[BenchArm]) -> list[ArmResult]:
        """Start the engines of these arms and let them take turns."""
        options, progress = self.options, self.progress
        runs: dict[str, list[Run]] = {arm.name: [] for arm in arms}
        with ExitStack() as stack:
            engines: dict[str, RunningArm] = {}
            for arm in arms:
                progress.note(f"Starting SGLang for {arm.name} ...")
                setup = self._setup(arm)
                engines[arm.name] = stack.enter_context(RunningArm(setup, progress.note))
            prompts = self._prompts(next(iter(engines.values())).model_path)
            for engine in engines.values():
                engine.warm_up(prompts)
            for repeat in range(1, options.repeats + 1):
                for arm in arms:
                    progress.run_begins(arm, repeat, options.repeats, self.needs.calls)
                    run = engines[arm.name].run(
                        self.workload,
                        prompts,
                        repeat,
                        progress.call_done,
                        priority=self._priority(arm),
                        # The calls are the same in each repeat, and in nearly the same order.
                        with_bound=repeat == 1 and options.scenario.prompts.kind == "tokens",
                    )
                    runs[arm.name].append(run)
                    progress.run_ends(arm, run)
            return [
                ArmResult(
                    arm=arm,
                    cache=engines[arm.name].setup.cache,
                    runs=runs[arm.name],
                    flags=engines[arm.name].flags,
                    engine_start_s=engines[arm.name].engine_start_s,
                    actual_device_tokens=engines[arm.name].device_tokens(),
                )
                for arm in arms
            ]

    def _setup(self, arm: BenchArm) -> ArmSetup:
        return ArmSetup(
            arm=arm,
            cache=self._cache(arm),
            model=self.options.model,
            device=self.options.device,
            engine_args=self.options.engine_args,
            env=dict(self.options.env),
            folder=self.folder,
            storage_dir=self.storage / arm.name,
            warm_up_tokens=max(1, self.needs.largest_prompt_tokens),
        )

    def _cache(self, arm: BenchArm) -> ArmCache:
        return arm_cache(arm, self.options.scenario.cache, self.needs.cached_tokens)

    def _prompts(self, model_path: str) -> Prompts:
        scenario = self.options.scenario
        if scenario.prompts.kind == "text":
            return TextPrompts(scenario.seed)
        return TokenPrompts(read_vocabulary(model_path, scenario.seed))

    def _priority(self, arm: BenchArm) -> Callable[[str, str], int] | None:
        return ClientPriorities(self.needs.agents).of if arm.priorities else None


def _check_fits(scenario: Scenario, workload: Workload, needs: WorkloadNeeds) -> None:
    """
    Raises:
        InvalidInputError: a call is longer than the device pool, or nothing would be counted.
    """
    device_tokens = scenario.cache.device_tokens
    least = needs.largest_call_tokens + max(2 * scenario.cache.page_tokens, _SPARE_TOKENS)
    if device_tokens < least:
        raise InvalidInputError(
            ["cache", "device_tokens"],
            f"{device_tokens} is too small: the longest call takes {needs.largest_call_tokens} "
            f"tokens, which have to be on the device all at once; use {least} or more",
        )
    if needs.calls <= workload.warm_up_calls:
        raise InvalidInputError(
            ["warm_up_rounds"],
            f"all {needs.calls} calls belong to the warm-up, so there is nothing to measure; "
            "use fewer warm-up rounds, or more rounds or workflows",
        )
    if scenario.cache.storage and not scenario.cache.host_tokens:
        raise InvalidInputError(
            ["cache", "host_tokens"],
            "a storage tier is reached through the host tier, so that there has to be one",
        )


def _notes(result: ArmResult) -> Iterator[str]:
    """What a reader has to know of an arm before believing its figures."""
    wanted, actual = result.cache.device_tokens, result.actual_device_tokens
    if actual is not None and actual < wanted:
        yield (
            f"{result.arm.name}: the engine has {actual:,} device tokens, not the {wanted:,} "
            "asked for"
        )
    for run in result.runs:
        for refusal in run.refusals:
            yield f"{result.arm.name}, repeat {run.repeat}: the service refused {refusal}"


def _groups(arms: Sequence[BenchArm], size: int) -> Iterator[Sequence[BenchArm]]:
    for start in range(0, len(arms), size):
        yield arms[start : start + size]


def _engines_that_fit(free_bytes: int | None) -> int:
    return max(1, (free_bytes or 0) // _CPU_ENGINE_BYTES)
