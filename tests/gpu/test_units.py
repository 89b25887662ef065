"""Which engines run side by side, and whether every task fits into a run of eight minutes."""

from __future__ import annotations

from dataclasses import replace

import pytest

from benchmarks.gpu.grid import DRY, REAL, benches
from benchmarks.gpu.plan import make_plan
from benchmarks.gpu.shapes import SHAPES
from benchmarks.gpu.units import (
    NOMINAL,
    Machine,
    arm_tiers,
    engine_bytes,
    grouped,
    plan_units,
)

H100 = Machine("cuda", 85_000_000_000, 128 * 2**30, NOMINAL["cuda"])
BENCHES = {bench.name: bench for bench in benches(REAL)}


def test_one_cell_of_the_grid_has_its_most_valuable_arms_side_by_side() -> None:
    groups = grouped(BENCHES["single-llama-3.1-8b"], H100)
    assert groups[0].arms == ("kvflow", "hicache-write-through", "lru")
    assert [name for group in groups for name in group.arms] == list(
        BENCHES["single-llama-3.1-8b"].arms
    )


def test_side_by_side_is_what_fits() -> None:
    for bench in BENCHES.values():
        tiers = arm_tiers(bench)
        for group in grouped(bench, H100):
            takes = [engine_bytes(SHAPES[bench.model], tiers[name], "cuda") for name in group.arms]
            fits = (
                sum(device for device, _ in takes) <= H100.device_bytes
                and sum(host for _, host in takes) <= H100.host_bytes
            )
            assert fits == (not group.obstacle)


def test_a_limit_that_fits_nowhere_says_so_and_fits_a_larger_gpu() -> None:
    groups = {group.arms: group for group in grouped(BENCHES["single-qwen2.5-32b"], H100)}
    assert "GB of device memory" in groups["limit",].obstacle
    larger = replace(H100, device_bytes=141_000_000_000)
    assert not any(group.obstacle for group in grouped(BENCHES["single-qwen2.5-32b"], larger))


def test_the_limit_holds_the_largest_of_a_bench_s_workloads() -> None:
    tiers = arm_tiers(BENCHES["single-llama-3.1-8b"])
    assert tiers["limit"].device_tokens > 10 * 8192
    assert tiers["limit"].host_tokens == 0
    assert tiers["kvflow"].device_tokens == 40_960


def test_pieces_come_in_order_and_first_groups_first() -> None:
    units, groups = plan_units("abcdef", REAL, H100)
    assert [unit.piece for unit in units] == sorted(unit.piece for unit in units)
    assert [unit.id for unit in units[1:3]] == [
        "b/single-llama-3.1-8b/kvflow+hicache-write-through+lru",
        "b/single-qwen2.5-32b/kvflow",
    ]
    assert groups.keys() == {unit.id for unit in units if unit.piece != "a"}


def test_each_task_has_an_id_of_its_own() -> None:
    for scale in (REAL, DRY):
        units, _ = plan_units("abcdef", scale, H100)
        names = [task.id for unit in units for task in unit.tasks]
        assert len(set(names)) == len(names)


def test_run_again_and_again_it_comes_to_everything_that_the_machine_can_run() -> None:
    units, _ = plan_units("abcdef", REAL, H100)
    done: set[str] = set()
    while steps := make_plan(units, 470.0, done).steps:
        done |= {task.id for step in steps for task in step.tasks}
    left = {one.id: one.reason for one in make_plan(units, 470.0, done).left_out}
    assert all("GB of device memory" in reason for reason in left.values())
    assert {name.split("/")[-1] for name in left} == {"limit"}


@pytest.mark.parametrize("piece", ["b", "f"])
def test_pieces_that_are_not_wanted_are_not_planned(piece: str) -> None:
    units, _ = plan_units(piece, DRY, H100)
    assert {unit.piece for unit in units} == {piece}
