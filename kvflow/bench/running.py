"""An arm that runs: its engine, its KVFlow service, and the workload against them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self

import httpx2

from kvflow.bench.arms import STORAGE_FOLDER_VARIABLE, ArmCache, BenchArm
from kvflow.bench.bound import bounds
from kvflow.bench.calls import EngineCalls
from kvflow.bench.drive import FinishedCall, Prompts, drive
from kvflow.bench.hints import NoHints, ServiceHints
from kvflow.bench.reply import Reply
from kvflow.bench.rows import CallRow, Run
from kvflow.demo.calls import CallFailedError
from kvflow.demo.engine_side import EngineSide, parse_metrics
from kvflow.demo.service import ServiceProcess
from kvflow.engine import EngineOptions, EngineProcess, free_port, prepare
from kvflow.engine.device import Device
from kvflow.errors import EnvironmentProblemError
from kvflow.workload import Piece, Workload, WorkloadCall

__all__ = ["ArmSetup", "RunningArm", "engine_options"]

SEED: Final = 0
"""Of the engine. Answers are greedy; it is fixed all the same."""

_IDLE_LIMIT_S: Final = 60.0
_POLL_S: Final = 0.1
_WARM_UP_CALLS: Final = 2


@dataclass(frozen=True, slots=True)
class ArmSetup:
    """What it takes to start an arm.

    Attributes:
        model: as the user named it.
        engine_args, env: for all arms alike.
        folder: for logs and the storage tier.
        warm_up_tokens: length of the prompts that take an engine's one-off costs.
    """

    arm: BenchArm
    cache: ArmCache
    model: str
    device: Device
    engine_args: tuple[str, ...]
    env: dict[str, str]
    folder: Path
    storage_dir: Path
    warm_up_tokens: int


def engine_options(setup: ArmSetup, port: int, service_url: str | None) -> EngineOptions:
    """How the arm's engine is started."""
    env = dict(setup.env)
    if setup.cache.storage:
        env[STORAGE_FOLDER_VARIABLE] = str(setup.storage_dir)
    if service_url is not None:
        env["KVFLOW_SERVICE_URL"] = service_url
        env["KVFLOW_PREFETCH"] = "on" if setup.arm.prefetch else "off"
    return EngineOptions(
        model=setup.model,
        device=setup.device,
        port=port,
        radix=setup.arm.radix,
        page_size=setup.cache.page_tokens,
        max_total_tokens=setup.cache.device_tokens,
        hicache_ratio=setup.cache.hicache_ratio,
        extra_args=(
            *("--random-seed", str(SEED)),
            *setup.arm.flags,
            *setup.cache.flags,
            *setup.engine_args,
        ),
        env=env,
    )


class RunningArm:
    """An arm whose engine is up inside the block; all its processes are gone after it."""

    def __init__(self, setup: ArmSetup, note: Callable[[str], None]) -> None:
        self.setup = setup
        self.engine_start_s = 0.0
        self._note = note
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        try:
            self._start()
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _start(self) -> None:
        arm, folder = self.setup.arm, self.setup.folder
        self._service_url: str | None = None
        if arm.uses_kvflow:
            # One each: an engine hears of all workflows of its service, and would act on those of
            # other arms.
            service = ServiceProcess(folder / f"{arm.name}-service.log")
            self._service_url = self._stack.enter_context(service).url
        options = engine_options(self.setup, free_port(), self._service_url)
        self._command = prepare(options, self._note)
        self._engine = EngineProcess(
            self._command, log_path=folder / f"{arm.name}-engine.log", start_timeout_s=900
        )
        begun_s = time.monotonic()
        self._stack.enter_context(self._engine)
        self.engine_start_s = time.monotonic() - begun_s
        self._side = self._stack.enter_context(closing(EngineSide(self._engine)))
        self._http = self._stack.enter_context(
            httpx2.Client(base_url=self._engine.base_url, timeout=60.0, trust_env=False)
        )
        if self._service_url is not None:
            self._side.wait_until_linked()

    @property
    def flags(self) -> list[str]:
        return self._command.shown_flags(self.setup.model)

    @property
    def model_path(self) -> str:
        """The checkpoint the engine serves."""
        return self._command.model_path or self.setup.model

    @property
    def pid(self) -> int | None:
        return self._engine.pid

    def device_tokens(self) -> int | None:
        """Size of the device pool as the engine has it; None if it does not say."""
        try:
            known = self._http.get("/server_info").raise_for_status().json()
        except httpx2.HTTPError as error:
            raise self._problem(f"does not describe itself ({error})") from error
        size = known.get("max_total_num_tokens")
        return size if isinstance(size, int) else None

    def warm_up(self, prompts: Prompts) -> None:
        """Take the costs of the first calls, and collect garbage as SGLang does at its start.

        Raises:
            EnvironmentProblemError: the engine does not answer.
        """

        async def calls() -> None:
            async with EngineCalls(self._engine.base_url, time.perf_counter) as engine:
                for number in range(_WARM_UP_CALLS):
                    prompt = (Piece(f"warm-up {number}", self.setup.warm_up_tokens),)
                    call = WorkloadCall("warm-up", (), 0.0, prompt, 1, Piece("warm-up answer", 4))
                    await engine.ask(prompts.route, prompts.body(call, {}))

        self._blamed(calls)
        self._http.post("/freeze_gc")

    def run(
        self,
        workload: Workload,
        prompts: Prompts,
        repeat: int,
        on_row: Callable[[CallRow], None],
        *,
        priority: Callable[[str, str], int] | None = None,
        with_bound: bool = False,
    ) -> Run:
        """Run the whole workload once, on empty caches.

        Raises:
            EnvironmentProblemError: the engine fails.
        """
        self._empty()
        recorder = _Recorder(repeat, workload.warm_up_calls, on_row)
        hints = NoHints() if self._service_url is None else ServiceHints(self._service_url)

        async def everything() -> None:
            async with EngineCalls(self._engine.base_url, recorder.clock) as engine:
                await recorder.begin(engine)
                await drive(
                    workload,
                    engine,
                    prompts,
                    hints,
                    on_finished=recorder.finished,
                    priority=priority,
                )
                recorder.after = parse_metrics(await engine.metrics_text())

        refusals: list[str] = []
        try:
            self._blamed(everything)
        finally:
            if isinstance(hints, ServiceHints):
                refusals = hints.close()
        found = bounds(recorder.replies, self.setup.cache) if with_bound else None
        return Run(
            repeat,
            recorder.rows,
            recorder.counted_from_s,
            recorder.metrics_delta(),
            found.whole if found else None,
            found.mirrored if found else None,
            refusals,
        )

    def _empty(self) -> None:
        """Leave nothing in any tier, nor anything alive in KVFlow."""
        deadline = time.monotonic() + _IDLE_LIMIT_S
        try:
            while self._side.kvflow_metrics().get("kvflow_live_workflows"):
                self._wait(deadline, "still has workflows of the run before")
            while not self._http.post("/flush_cache").is_success:
                self._wait(deadline, "did not empty its cache")
        except httpx2.HTTPError as error:
            raise self._problem(f"does not answer ({error})") from error
        if self.setup.cache.storage:
            self.setup.storage_dir.mkdir(parents=True, exist_ok=True)
            while _files_removed(self.setup.storage_dir):
                self._wait(deadline, "still writes to its storage tier")

    def _wait(self, deadline: float, problem: str) -> None:
        if time.monotonic() > deadline:
            raise self._problem(problem)
        time.sleep(_POLL_S)

    def _blamed(self, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Run a coroutine, and say of a failed call what became of the engine."""
        try:
            asyncio.run(work())
        except CallFailedError as error:
            state = "failed at a call" if self._engine.is_running() else "ended during the run"
            raise self._problem(f"{state} ({error})") from error

    def _problem(self, what: str) -> EnvironmentProblemError:
        return self._engine.problem(f"of {self.setup.arm.name!r} {what}")


class _Recorder:
    """Writes down a run as it goes. Its clock begins when it begins."""

    def __init__(self, repeat: int, warm_up_calls: int, on_row: Callable[[CallRow], None]) -> None:
        self.rows: list[CallRow] = []
        self.replies: list[Reply] = []
        self.counted_from_s = 0.0
        self.before: dict[str, float] = {}
        self.after: dict[str, float] = {}
        self._repeat = repeat
        self._warm_up_calls = warm_up_calls
        self._on_row = on_row
        self._origin_s = 0.0

    def clock(self) -> float:
        return time.perf_counter() - self._origin_s

    async def begin(self, engine: EngineCalls) -> None:
        self._engine = engine
        self.before = parse_metrics(await engine.metrics_text())
        self._origin_s = time.perf_counter()

    async def finished(self, finished: FinishedCall) -> None:
        wanted, given = finished.call.answer.tokens, finished.reply.output_tokens
        if given != wanted:
            raise CallFailedError(f"it generated {given} tokens instead of {wanted}")
        number = len(self.rows)
        row = CallRow.of(finished, self._repeat, counted=number >= self._warm_up_calls)
        self.rows.append(row)
        self.replies.append(finished.reply)
        self._on_row(row)
        if number + 1 == self._warm_up_calls:
            self.before = parse_metrics(await self._engine.metrics_text())
            self.counted_from_s = self.clock()

    def metrics_delta(self) -> dict[str, float]:
        """Growth of the counters since the warm-up was over."""
        return {
            name: value - self.before.get(name, 0.0)
            for name, value in self.after.items()
            if name.partition("{")[0].endswith("_total")
        }


def _files_removed(folder: Path) -> int:
    files = [path for path in folder.rglob("*") if path.is_file()]
    for path in files:
        path.unlink(missing_ok=True)
    return len(files)
