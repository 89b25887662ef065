"""Everything that ``run`` does once SGLang and KVFlow can be imported."""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

from benchmarks.environment import describe_environment
from benchmarks.gpu.checkpoint import SEED, SPREAD
from benchmarks.gpu.correctness import (
    TOLERANCE,
    CorrectnessSetup,
    Observed,
    run_engine,
    verdict,
)
from benchmarks.gpu.engines import CORRECTNESS_DTYPE
from benchmarks.gpu.floor import Rates
from benchmarks.gpu.grid import DRY, PIECES, REAL
from benchmarks.gpu.plan import LeftOut, Pace, Plan, Step, make_plan
from benchmarks.gpu.rates import measure_rates
from benchmarks.gpu.results import FORMAT, ResultFolder, merged
from benchmarks.gpu.sessions import SessionSetup, running_session
from benchmarks.gpu.units import NOMINAL, ArmGroup, Machine, plan_units, task_id
from kvflow.engine.device import ConcreteDevice, visible_gpus
from kvflow.errors import KVFlowError

__all__ = ["Work", "main"]

BUDGET_S: Final = 480.0
DRY_BUDGET_S: Final = 900.0
_CLOSING_S: Final = 10.0
"""Left at the end for engines to stop and files to be written."""
_CHECKPOINT_LIMIT_S: Final = 300


def main(arguments: Sequence[str] | None = None) -> int:
    given = _arguments(arguments)
    begun_s = time.monotonic()
    device: ConcreteDevice = "cpu" if given.dry_run else "cuda"
    if device == "cuda" and not visible_gpus() and not given.plan_only:
        print("run: no GPU is visible; --dry-run does without one", file=sys.stderr)
        return 1
    budget_s = given.budget_s or (DRY_BUDGET_S if given.dry_run else BUDGET_S)
    folder = ResultFolder(given.output)
    scale = REAL
    if given.dry_run:
        scale = replace(DRY, page_tokens=_dry_page_tokens(version("sglang")))
    rates = NOMINAL[device] if given.plan_only else _rates(folder, device, given.output)
    machine = Machine(device, *_memory(device, (given.gpu_gb, given.host_gb)), rates)
    units, groups = plan_units(given.pieces, scale, machine)
    left_s = budget_s - _CLOSING_S - (time.monotonic() - begun_s)
    plan = make_plan(units, left_s, folder.done())
    _show(plan)
    if given.plan_only:
        return 0
    work = Work(
        folder, given.output, device, rates, groups, begun_s + budget_s - _CLOSING_S, given.dry_run
    )
    for step in plan.steps:
        work.run(step)
        work.summarize(plan)
    path = work.summarize(plan)
    print(f"run: {path}", flush=True)
    return 1 if work.failed else 0


@dataclass(slots=True)
class Work:
    """What is under way."""

    results: ResultFolder
    output: Path
    device: ConcreteDevice
    rates: Rates
    groups: Mapping[str, ArmGroup]
    deadline_s: float
    dry_run: bool
    pace: Pace = field(default_factory=Pace)
    skipped: list[LeftOut] = field(default_factory=list)
    failed: list[dict[str, str]] = field(default_factory=list)
    environment: dict[str, Any] = field(default_factory=describe_environment)

    def run(self, step: Step) -> None:
        """Do a step as far as there is time; a failure is written down, and the next goes on."""
        print(f"run: {step.unit.id}, about {step.estimate_s * self.pace.factor:.0f} s", flush=True)
        try:
            if step.unit.piece == "a":
                self._correctness(step)
            else:
                self._bench(step)
        except (KVFlowError, RuntimeError, OSError) as error:
            self.failed.append({"unit": step.unit.id, "error": str(error)})
            print(f"run: {step.unit.id} failed: {error}", file=sys.stderr, flush=True)

    def _bench(self, step: Step) -> None:
        group = self.groups[step.unit.id]
        plays = {task_id(group, play): play for play in group.bench.plays}
        if not self.time_for(step.tasks[0].id, step.unit.start_s + step.tasks[0].estimate_s):
            return
        with _scratch(self.output) as scratch:
            setup = SessionSetup(self.device, scratch, self.rates, self._environment(), _say)
            begun_s = time.monotonic()
            with running_session(group, setup) as session:
                self.pace.note(step.unit.start_s, time.monotonic() - begun_s)
                for task in step.tasks:
                    if not self.time_for(task.id, task.estimate_s):
                        continue
                    _say(f"  {task.id}")
                    begun_s = time.monotonic()
                    document = session.play(plays[task.id])
                    self._write(task.id, task.estimate_s, begun_s, document)

    def _correctness(self, step: Step) -> None:
        with _scratch(self.output) as scratch:
            model = scratch / "random-weights"
            dtype = CORRECTNESS_DTYPE[self.device]
            _make_checkpoint(model, dtype)
            setup = CorrectnessSetup(self.device, model, scratch)
            if self.dry_run:
                pages = _dry_page_tokens(version("sglang"))
                setup = replace(setup, prompts=1, page_tokens=pages)
            for task in step.tasks:
                if not self.time_for(task.id, task.estimate_s):
                    continue
                name = task.id.removeprefix("a/")
                begun_s = time.monotonic()
                observed: list[Observed] = []
                flags = run_engine(setup, name, observed.append)
                found = verdict(observed, TOLERANCE[self.device])
                _say(f"  {task.id}: {'holds' if found['holds'] else 'DOES NOT HOLD'}")
                document = {
                    "piece": "a",
                    "engine": name,
                    "dtype": dtype,
                    "weights": {"seed": SEED, "spread": SPREAD},
                    "flags": flags,
                    "environment": self._environment(),
                    "verdict": found,
                    "answers": [one.to_json() for one in observed],
                }
                self._write(task.id, task.estimate_s, begun_s, document)

    def time_for(self, task: str, estimate_s: float) -> bool:
        left_s = self.deadline_s - time.monotonic()
        needed_s = estimate_s * self.pace.factor
        if needed_s <= left_s:
            return True
        reason = f"things took longer: needs about {needed_s:.0f} s, {left_s:.0f} s are left"
        self.skipped.append(LeftOut(task, reason))
        _say(f"  {task} is left out: {reason}")
        return False

    def _write(
        self, task: str, estimate_s: float, begun_s: float, document: Mapping[str, Any]
    ) -> None:
        took_s = time.monotonic() - begun_s
        self.pace.note(estimate_s, took_s)
        self.results.write_part(
            task, {"dry_run": self.dry_run, "took_s": round(took_s, 1), **document}
        )

    def _environment(self) -> dict[str, Any]:
        return {**self.environment, "device": self.device, "gpus": list(visible_gpus())}

    def summarize(self, plan: Plan) -> Path:
        """Write ``result.json``, of this run and those before it in the same folder."""
        parts = self.results.parts()
        done = {part["task"] for part in parts}
        left_out = [one for one in (*plan.left_out, *self.skipped) if one.id not in done]
        return self.results.write_result(
            {
                "format": FORMAT,
                "dry_run": self.dry_run,
                "environment": self._environment(),
                "rates": asdict(self.rates),
                "tasks_done": len(done),
                "left_out": [asdict(one) for one in left_out],
                "failed": self.failed,
                **merged(parts),
            }
        )


def _arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="run", description="KVFlow on a CUDA machine.")
    parser.add_argument("--output", type=Path, required=True, help="folder of the results")
    parser.add_argument(
        "--pieces",
        type=_pieces,
        default=tuple(PIECES),
        help="; ".join(f"{name}: {what}" for name, what in PIECES.items()),
    )
    parser.add_argument("--budget-s", type=float, help=f"time there is (default: {BUDGET_S:.0f})")
    parser.add_argument("--dry-run", action="store_true", help="on the CPU, with tiny shapes")
    parser.add_argument("--plan-only", action="store_true", help="say what would be run, and when")
    parser.add_argument(
        "--gpu-gb", type=float, default=85.0, help="for --plan-only without a GPU (%(default)s)"
    )
    parser.add_argument(
        "--host-gb", type=float, default=128.0, help="likewise, the host's memory (%(default)s)"
    )
    return parser.parse_args(arguments)


def _pieces(text: str) -> tuple[str, ...]:
    wanted = [name.strip() for name in text.split(",") if name.strip()]
    unknown = [name for name in wanted if name not in PIECES]
    if unknown or not wanted:
        raise argparse.ArgumentTypeError(f"name pieces of {', '.join(PIECES)}, as in a,b")
    return tuple(name for name in PIECES if name in wanted)


def _dry_page_tokens(sglang: str) -> int:
    """SGLang before 0.5.23 has no pages on the CPU; see ``kvflow.engine.command``."""
    release = tuple(int(part) for part in re.findall(r"\d+", sglang)[:3])
    return DRY.page_tokens if release >= (0, 5, 23) else 1


def _rates(folder: ResultFolder, device: ConcreteDevice, output: Path) -> Rates:
    """Measured once per result folder."""
    kept = folder.kept("rates")
    if kept is not None:
        return Rates(**kept)
    rates = measure_rates(device, output)
    folder.keep("rates", asdict(rates))
    return rates


def _memory(device: ConcreteDevice, assumed_gb: tuple[float, float]) -> tuple[int, int]:
    """Of the device and of the host, in bytes; on the CPU both are what is free.

    Args:
        assumed_gb: both, where there is no GPU to ask.
    """
    if device == "cuda" and not visible_gpus():
        return int(assumed_gb[0] * 1e9), int(assumed_gb[1] * 1e9)
    available = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES")
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            available = int(line.split()[1]) * 1024
    if device == "cpu":
        return available, available
    command = ["nvidia-smi", "--query-gpu=memory.free", "--format=csv,noheader,nounits"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    return int(done.stdout.split()[0]) * 2**20, available


@contextmanager
def _scratch(output: Path) -> Iterator[Path]:
    """A folder for logs, configs and storage; the logs are moved next to the results."""
    logs = output / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".work-", dir=output) as name:
        scratch = Path(name)
        try:
            yield scratch
        finally:
            for log in scratch.glob("*.log"):
                log.replace(logs / f"{int(time.time())}-{log.name}")


def _make_checkpoint(folder: Path, dtype: str) -> None:
    """In a process of its own, which takes torch's memory with it."""
    command = [sys.executable, "-m", "benchmarks.gpu.checkpoint", str(folder), "--dtype", dtype]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=_CHECKPOINT_LIMIT_S
    )
    if done.returncode != 0:
        raise RuntimeError(f"the random weights could not be made:\n{done.stderr[-2000:]}")


def _show(plan: Plan) -> None:
    print(f"run: planned for {plan.budget_s:.0f} s, about {plan.estimate_s:.0f} s taken:")
    for step in plan.steps:
        print(f"  {step.unit.id}: {step.unit.start_s:.0f} s to start")
        for task in step.tasks:
            print(f"    {task.id}: {task.estimate_s:.0f} s")
    for one in plan.left_out:
        print(f"  left out {one.id}: {one.reason}")
    sys.stdout.flush()


def _say(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    sys.exit(main())
