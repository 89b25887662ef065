"""From benches to units of a plan: which engines fit side by side, and how long they take.

The estimates only decide what is begun; nothing is reported of them. While it runs, the time that
tasks really took corrects them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Final

from benchmarks.gpu.correctness import ENGINES
from benchmarks.gpu.floor import CallSizes, Rates, call_floor
from benchmarks.gpu.grid import Bench, Play, Scale, benches
from benchmarks.gpu.plan import Task, Unit
from benchmarks.gpu.shapes import SHAPES
from kvflow.bench.arms import ARMS, ArmCache, BenchArm, arm_cache
from kvflow.bench.needs import WorkloadNeeds, workload_needs
from kvflow.engine.device import ConcreteDevice
from kvflow.simulator.presets import ModelShape
from kvflow.workload import Scenario, build_workload

__all__ = [
    "ARM_OF",
    "ArmGroup",
    "Machine",
    "arm_tiers",
    "engine_bytes",
    "grouped",
    "plan_units",
    "scenario_calls",
    "scenario_needs",
    "task_id",
]

ARM_OF: Final[Mapping[str, BenchArm]] = {str(name): arm for name, arm in ARMS.items()}

NOMINAL: Final = {
    # NVIDIA H100 SXM: PCIe 5.0 x16, 80 % of which a copy reaches, dense BF16 at half of what the
    # data sheet says, 3.35 TB/s.
    "cuda": Rates(50e9, 500e12, 3.35e12),
    "cpu": Rates(2e9, 20e9, 5e9),
}
"""Before anything was measured."""

_ENGINE_BYTES: Final = {"cuda": 4_000_000_000, "cpu": 2_000_000_000}
"""Beside weights and pools: CUDA's context, graphs and activations; on the CPU the processes."""
_DEVICE_SHARE: Final = 0.94
_HOST_SHARE: Final = 0.7
_START_S: Final = {"cuda": 40.0, "cpu": 18.0}
_WEIGHTS_BYTES_PER_S: Final = 2e9
_CALL_S: Final = {"cuda": 0.02, "cpu": 0.05}
_STEP_S: Final = {"cuda": 0.003, "cpu": 0.012}
_OVER_FLOOR: Final = 1.7
_MOST_TOGETHER: Final = 24
"""Requests that decode in little more time than one."""


@dataclass(frozen=True, slots=True)
class Machine:
    """What the plan depends on. ``device_bytes``: of the GPU; on the CPU, of memory."""

    device: ConcreteDevice
    device_bytes: int
    host_bytes: int
    rates: Rates


@dataclass(frozen=True, slots=True)
class ArmGroup:
    """Arms of a bench whose engines run side by side."""

    bench: Bench
    arms: tuple[str, ...]
    obstacle: str = ""

    @property
    def id(self) -> str:
        return f"{self.bench.piece}/{self.bench.name}/{'+'.join(self.arms)}"


def task_id(group: ArmGroup, play: Play) -> str:
    """Name of the result file's task."""
    return f"{group.bench.piece}/{group.bench.name}/{play.name}/{'+'.join(group.arms)}"


@cache
def scenario_needs(scenario: Scenario) -> WorkloadNeeds:
    """What a scenario's workload needs of a cache."""
    return workload_needs(build_workload(scenario).workflows(), scenario.cache.page_tokens)


@cache
def scenario_calls(scenario: Scenario) -> tuple[CallSizes, ...]:
    """The lengths of all calls, in order."""
    return tuple(
        CallSizes(call.fixed_tokens, call.prompt_tokens - call.fixed_tokens, call.answer.tokens)
        for workflow in build_workload(scenario).workflows()
        for call in workflow.calls
    )


def arm_tiers(bench: Bench) -> dict[str, ArmCache]:
    """The tiers of each arm: one engine of an arm runs all of the bench's scenarios."""
    needed = max(scenario_needs(play.scenario).cached_tokens for play in bench.plays)
    cache = bench.plays[0].scenario.cache
    return {name: arm_cache(ARM_OF[name], cache, needed) for name in bench.arms}


def engine_bytes(shape: ModelShape, tiers: ArmCache, device: ConcreteDevice) -> tuple[int, int]:
    """What an engine takes of the device's memory and of the host's."""
    token = shape.kv_bytes_per_token
    on_device = shape.weight_bytes + tiers.device_tokens * token + _ENGINE_BYTES[device]
    return on_device, tiers.host_tokens * token


def grouped(bench: Bench, machine: Machine) -> list[ArmGroup]:
    """As many arms side by side as fit, in order of value; an arm that fits nowhere says so."""
    room = (machine.device_bytes * _DEVICE_SHARE, machine.host_bytes * _HOST_SHARE)
    groups: list[ArmGroup] = []
    current: list[str] = []
    left = room
    for name, tiers in arm_tiers(bench).items():
        takes = engine_bytes(SHAPES[bench.model], tiers, machine.device)
        problem = _too_large(takes, room)
        if problem:
            groups.append(ArmGroup(bench, (name,), problem))
            continue
        if current and _too_large(takes, left):
            groups.append(ArmGroup(bench, tuple(current)))
            current, left = [], room
        current.append(name)
        left = (left[0] - takes[0], left[1] - takes[1])
    if current:
        groups.append(ArmGroup(bench, tuple(current)))
    return groups


def plan_units(
    pieces: Iterable[str], scale: Scale, machine: Machine
) -> tuple[list[Unit], dict[str, ArmGroup]]:
    """Units in order of value, and the arm groups by unit id.

    Piece by piece; within a piece the most valuable arms of all its benches first.
    """
    units: list[Unit] = []
    groups: dict[str, ArmGroup] = {}
    made = benches(scale)
    for piece in pieces:
        if piece == "a":
            start_s = _START_S[machine.device]
            tasks = tuple(Task(f"a/{name}", start_s + 8.0 * len(ENGINES[name])) for name in ENGINES)
            units.append(Unit("a", "a", 0.0, tasks))
            continue
        of_piece = [grouped(bench, machine) for bench in made if bench.piece == piece]
        for place in range(max(map(len, of_piece), default=0)):
            for of_bench in of_piece:
                if place < len(of_bench):
                    group = of_bench[place]
                    groups[group.id] = group
                    units.append(_unit(group, machine))
    return units, groups


def _unit(group: ArmGroup, machine: Machine) -> Unit:
    bench = group.bench
    shape = SHAPES[bench.model]
    start_s = _START_S[machine.device]
    if machine.device == "cuda":
        start_s += shape.weight_bytes / _WEIGHTS_BYTES_PER_S
    return Unit(
        id=group.id,
        piece=bench.piece,
        start_s=len(group.arms) * start_s,
        tasks=tuple(
            Task(task_id(group, play), len(group.arms) * _play_s(play, shape, machine))
            for play in bench.plays
        ),
        obstacle=group.obstacle,
    )


def _play_s(play: Play, shape: ModelShape, machine: Machine) -> float:
    """One arm's time: as if nothing were cached, as nothing is at the beginning."""
    device, rates = machine.device, machine.rates
    prefill_s = decode_s = 0.0
    for sizes, times in Counter(scenario_calls(play.scenario)).items():
        floor = call_floor(shape, sizes, rates)
        prefill_s += times * (_CALL_S[device] + _OVER_FLOOR * floor.cold_ttft_s)
        decode_s += times * (sizes.output * _STEP_S[device] + _OVER_FLOOR * floor.decode_s)
    together = min(play.scenario.load.concurrency or _MOST_TOGETHER, _MOST_TOGETHER)
    return play.repeats * (prefill_s + decode_s / together)


def _too_large(takes: Sequence[float], room: Sequence[float]) -> str:
    for needed, there, where in zip(takes, room, ("device", "host"), strict=True):
        if needed > there:
            free_gb = max(0.0, there) / 1e9
            return f"takes {needed / 1e9:.0f} GB of {where} memory; {free_gb:.0f} GB can be used"
    return ""
