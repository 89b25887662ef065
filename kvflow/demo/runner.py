"""Runs the arms one after the other, each with processes of its own."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path
from typing import Final

from kvflow.agent_sdk import KVFlowClient
from kvflow.demo.arms import PAGE_SIZE, Arm
from kvflow.demo.bound import clairvoyant_hits
from kvflow.demo.calls import CallFailedError, connect
from kvflow.demo.engine_side import EngineSide
from kvflow.demo.log_folder import log_folder
from kvflow.demo.progress import Progress
from kvflow.demo.service import ServiceProcess
from kvflow.demo.summary import ArmResult, DemoResult
from kvflow.demo.team import REQUESTS, TEAM
from kvflow.demo.workflow import CallRecord, make_agents, run_rounds, team_workflow
from kvflow.engine import EngineOptions, EngineProcess, free_port, prepare
from kvflow.engine.device import Device, visible_gpus
from kvflow.engine.flags import flag_value
from kvflow.engine.machine import hardware, versions
from kvflow.errors import EnvironmentProblemError, InvalidInputError

__all__ = ["MODEL", "SEED", "DemoOptions", "run_demo"]

MODEL: Final = "smollm2"
SEED: Final = 0
"""Answers are greedy; the seed is fixed all the same."""


@dataclass(frozen=True, slots=True)
class DemoOptions:
    """What to run.

    Attributes:
        rounds: requests the team works on; the first one fills the cache.
        keep_logs: keep the logs of engines and service although nothing went wrong.

    Raises:
        InvalidInputError: there are too few rounds to compare, or more than there are requests.
    """

    arms: tuple[Arm, ...]
    rounds: int = 3
    device: Device = "auto"
    keep_logs: bool = False

    def __post_init__(self) -> None:
        if not 2 <= self.rounds <= len(REQUESTS):
            raise InvalidInputError(
                ["--rounds"],
                f"{self.rounds} is out of range; use 2 to {len(REQUESTS)}: the first round fills "
                "the cache, and each takes a feature request of its own",
            )


def run_demo(options: DemoOptions, progress: Progress) -> DemoResult:
    """Run all arms. Leaves no process behind, however it ends.

    Raises:
        EnvironmentProblemError: an engine or the service cannot be started, or broke off; the logs
            are kept then.
    """
    _require_openai()
    started_at = datetime.now(UTC).isoformat(timespec="seconds")
    start_s = time.monotonic()
    results: list[ArmResult] = []
    with progress, log_folder("demo", keep=options.keep_logs) as log_dir:
        for position, arm in enumerate(options.arms, start=1):
            progress.arm_begins(arm, position, len(options.arms), options.rounds * len(TEAM))
            results.append(_run_arm(arm, options, log_dir, progress))
            progress.arm_ends(results[-1])
        if options.keep_logs:
            progress.note(f"Logs are in {log_dir}")
    device = "cpu" if flag_value(results[0].engine_flags, "--device") == "cpu" else "cuda"
    return DemoResult(
        arms=results,
        versions=versions(),
        hardware=hardware(device, visible_gpus() if device == "cuda" else ()),
        started_at=started_at,
        elapsed_s=time.monotonic() - start_s,
    )


@dataclass(frozen=True, slots=True)
class _Run:
    """What came of the workflow, and what the service knows of it."""

    records: Sequence[CallRecord]
    wall_s: float
    steps_reported: int | None = None
    mispredictions: int | None = None


def _run_arm(arm: Arm, options: DemoOptions, log_dir: Path, progress: Progress) -> ArmResult:
    with ExitStack() as stack:
        service_url: str | None = None
        if arm.uses_kvflow:
            progress.stage("starting the KVFlow service")
            service = stack.enter_context(ServiceProcess(log_dir / f"{arm.name}-service.log"))
            service_url = service.url
        command = prepare(_engine_options(arm, options.device, service_url), progress.note)
        progress.stage("starting SGLang, which takes about half a minute")
        start_s = time.monotonic()
        engine = EngineProcess(command, log_path=log_dir / f"{arm.name}-engine.log")
        stack.enter_context(engine)
        engine_start_s = time.monotonic() - start_s
        progress.stage("warming up")
        side = stack.enter_context(closing(EngineSide(engine)))
        side.warm_up()
        if service_url is not None:
            side.wait_until_linked()
        with _blamed_on(engine):
            run = _run_workflow(engine.base_url, service_url, options.rounds, progress)
        metrics = side.kvflow_metrics()
    answers = [record.answer for record in run.records]
    tiers = arm.setting
    return ArmResult(
        arm=arm,
        records=run.records,
        optimal_hits=clairvoyant_hits(answers, tiers.capacity_tokens, PAGE_SIZE),
        mirrored_hits=clairvoyant_hits(answers, tiers.host_tokens, PAGE_SIZE)
        if tiers.host_tokens
        else None,
        wall_s=run.wall_s,
        engine_start_s=engine_start_s,
        engine_flags=command.shown_flags(MODEL),
        kvflow_metrics=metrics,
        steps_reported=run.steps_reported,
        mispredictions=run.mispredictions,
    )


def _run_workflow(
    engine_url: str, service_url: str | None, rounds: int, progress: Progress
) -> _Run:
    with closing(connect(engine_url)) as client:
        if service_url is None:
            agents = make_agents(client, None)
            start_s = time.perf_counter()
            records = run_rounds(agents, rounds, progress.call_done)
            return _Run(records, time.perf_counter() - start_s)
        workflow = team_workflow(service_url, engine_url)
        agents = make_agents(client, workflow)
        with workflow.run() as run:
            run.register()
            start_s = time.perf_counter()
            records = run_rounds(agents, rounds, progress.call_done)
            wall_s = time.perf_counter() - start_s
            run.flush()
            with KVFlowClient(service_url) as observer:
                seen = observer.get_workflow(run.workflow_id)
            return _Run(records, wall_s, seen.steps_started, seen.mispredictions)


def _engine_options(arm: Arm, device: Device, service_url: str | None) -> EngineOptions:
    env: dict[str, str] = {}
    if service_url is not None:
        env = {
            "KVFLOW_SERVICE_URL": service_url,
            "KVFLOW_PREFETCH": "on" if arm.prefetch else "off",
        }
    return EngineOptions(
        model=MODEL,
        device=device,
        port=free_port(),
        radix=arm.radix,
        page_size=PAGE_SIZE,
        max_total_tokens=arm.setting.device_tokens,
        hicache_ratio=arm.setting.hicache_ratio,
        extra_args=("--random-seed", str(SEED)),
        env=env,
    )


@contextmanager
def _blamed_on(engine: EngineProcess) -> Iterator[None]:
    """Say of a failed call what became of the engine."""
    try:
        yield
    except CallFailedError as error:
        state = "did not answer a call" if engine.is_running() else "ended during the run"
        raise engine.problem(f"{state} ({error})") from error


def _require_openai() -> None:
    if find_spec("openai") is None:
        raise EnvironmentProblemError(
            "the demo needs the package openai, which is not installed",
            "pip install 'kvflow[demo]'",
        )
