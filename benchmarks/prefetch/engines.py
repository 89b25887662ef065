"""Engines for the prefetch benchmarks: one per arm, and calls that are measured."""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

import httpx2

from benchmarks.environment import describe_environment, write_result
from benchmarks.prefetch.workload import (
    PAGE_TOKENS,
    Call,
    Claims,
    Ring,
    differences,
    prefetch_figures,
    summarize,
)
from kvflow.bench.reply import ChatReading, Reply
from kvflow.demo.calls import CallFailedError
from kvflow.demo.engine_side import EngineSide
from kvflow.engine import EngineOptions, EngineProcess, free_port, prepare
from kvflow.engine.options import RadixCache

__all__ = [
    "ENGINE_SEED",
    "Arm",
    "ArmRun",
    "Comparison",
    "Engine",
    "arguments",
    "positive",
    "ring_round",
    "run_rings",
    "running",
]

RESULTS: Final = Path(__file__).parents[1] / "results"
MODEL: Final = "smollm2"
ENGINE_SEED: Final = 0
_CALL_LIMIT_S: Final = 300.0
WARM_UP_ROUNDS: Final = 2
_NOTHING: Final[Mapping[str, str]] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Arm:
    """One engine of a comparison.

    Attributes:
        hicache_ratio: size of the host tier over that of the device tier; None: no host tier.
        prefetch: whether KVFlow copies ahead; stock SGLang never does.
        env: variables for the engine besides those that follow from the above.
    """

    name: str
    radix: RadixCache
    device_tokens: int
    hicache_ratio: float | None = None
    prefetch: bool = True
    env: Mapping[str, str] = field(default_factory=lambda: _NOTHING)
    extra_args: tuple[str, ...] = ()

    @property
    def variables(self) -> dict[str, str]:
        """What is set in the engine's environment."""
        if self.radix == "stock":
            return dict(self.env)
        prefetch = "on" if self.prefetch else "off"
        return {"KVFLOW_SERVICE_URL": "off", "KVFLOW_PREFETCH": prefetch, **self.env}


class Engine:
    """A running engine, warm and with empty caches. Calls may come from several threads."""

    def __init__(self, process: EngineProcess) -> None:
        self._process = process
        self._side = EngineSide(process)
        self._http = httpx2.Client(
            base_url=process.base_url, timeout=_CALL_LIMIT_S, trust_env=False
        )
        self._origin_s = time.perf_counter()

    def close(self) -> None:
        self._http.close()
        self._side.close()

    @property
    def flags(self) -> list[str]:
        """SGLang's flags, without the folder that the model is in on this machine."""
        return self._process.command.shown_flags(MODEL)

    def empty(self) -> None:
        """Make one call that takes one-off costs, then empty all tiers but the storage tier."""
        self._side.warm_up()

    def metrics(self) -> dict[str, float]:
        """The plugin's counters; empty for stock SGLang."""
        return self._side.kvflow_metrics()

    def cpu_s(self) -> float:
        """CPU time that the engine's processes have used so far."""
        ticks = 0
        for stat in Path("/proc").glob("[0-9]*/stat"):
            try:
                fields = stat.read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if int(fields[2]) == self._process.pid:
                ticks += int(fields[11]) + int(fields[12])
        return ticks / os.sysconf("SC_CLK_TCK")

    def clock(self) -> float:
        """Seconds since the engine was up."""
        return time.perf_counter() - self._origin_s

    def ask(
        self,
        messages: Sequence[Mapping[str, str]],
        *,
        max_tokens: int,
        identity: Mapping[str, Any],
        steps: Mapping[str, int | None],
    ) -> Reply:
        """One greedy chat completion with KVFlow's hints in-band; stock SGLang ignores those.

        Raises:
            EnvironmentProblemError: the engine does not answer; with the end of its log.
        """
        body = {
            "model": "default",
            "messages": list(messages),
            "max_tokens": max_tokens,
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True},
            "return_cached_tokens_details": True,
            "return_input_ids_in_sglext": True,
            "return_output_ids_in_sglext": True,
            "custom_params": {"kvflow": dict(identity), "kvflow_steps": dict(steps)},
        }
        reading = ChatReading(self.clock(), self.clock)
        try:
            with self._http.stream("POST", "/v1/chat/completions", json=body) as answer:
                answer.raise_for_status()
                for line in answer.iter_lines():
                    reading.take(line)
                return reading.reply()
        except (httpx2.HTTPError, CallFailedError) as error:
            raise self._process.problem(f"failed a call ({error!r})") from error


@contextmanager
def running(arm: Arm, env: Mapping[str, str] = _NOTHING) -> Iterator[Engine]:
    """The arm's engine; ``env``: variables that are not written down, such as folders."""
    options = EngineOptions(
        model=MODEL,
        device="cpu",
        port=free_port(),
        radix=arm.radix,
        page_size=PAGE_TOKENS,
        max_total_tokens=arm.device_tokens,
        hicache_ratio=arm.hicache_ratio,
        extra_args=("--random-seed", str(ENGINE_SEED), *arm.extra_args),
        env={**arm.variables, **env},
    )
    with EngineProcess(prepare(options)) as process, closing(Engine(process)) as engine:
        engine.empty()
        yield engine


@dataclass(frozen=True, slots=True)
class ArmRun:
    """What came of an arm. ``figures`` are the plugin's, over the calls that are not cold."""

    arm: Arm
    flags: Sequence[str]
    calls: Sequence[Call]
    figures: Mapping[str, float] | None

    def written(self, **more: Any) -> dict[str, Any]:
        """The run as it is written down."""
        return {
            "name": self.arm.name,
            **more,
            "summary": summarize(self.calls),
            "prefetch": self.figures,
            "variables": self.arm.variables,
            "engine_flags": list(self.flags),
            "calls": [call.row() for call in self.calls],
        }


@dataclass(frozen=True, slots=True)
class Comparison:
    """The file that a comparison of arms is written to, as far as it has come."""

    output: Path
    text_seed: int
    settings: Mapping[str, Any]
    environment: Mapping[str, object] = field(default_factory=describe_environment)
    begun_s: float = field(default_factory=time.monotonic)

    def write(self, runs: Mapping[str, ArmRun], rows: Sequence[Mapping[str, Any]]) -> None:
        """Write the arms that are through; ``rows`` are these runs as they are written down."""
        different = differences({name: run.calls for name, run in runs.items()})
        write_result(
            self.output,
            {
                "environment": self.environment,
                "seeds": {"text": self.text_seed, "engine": ENGINE_SEED},
                "settings": self.settings,
                "outputs_identical": not different,
                "differences": different,
                "arms": rows,
                "took_s": time.monotonic() - self.begun_s,
            },
        )
        print(f"outputs identical: {not different}; {self.output}", flush=True)


def ring_round(
    engine: Engine, ring: Ring, number: int, claims: Claims, client_id: str = "benchmark"
) -> list[Call]:
    """Call every agent once, in order, each call right after the one before."""
    calls = []
    for agent in range(ring.agents):
        name = f"a{agent}"
        identity = {"client_id": client_id, "workflow_id": "ring", "agent_id": name}
        reply = engine.ask(
            ring.messages(agent, number),
            max_tokens=ring.max_tokens,
            identity=identity,
            steps=claims(agent),
        )
        calls.append(Call(name, number, reply))
    return calls


def run_rings(
    arms: Sequence[Arm],
    ring: Ring,
    rounds: int,
    env: Mapping[str, Mapping[str, str]] = MappingProxyType({}),
) -> dict[str, ArmRun]:
    """Two rounds of warm-up, then ``rounds`` more, on one engine for each arm.

    All engines live at the same time and take their rounds in turn, as the machine's speed changes
    from minute to minute; an idle engine sleeps. The first round is cold, the second shows where
    an agent's fixed prompt ends. ``env``: by arm, variables that are not written down.
    """
    print(f"starting {', '.join(arm.name for arm in arms)}", flush=True)
    calls: dict[str, list[Call]] = {arm.name: [] for arm in arms}
    before: dict[str, Mapping[str, float]] = {}
    with ExitStack() as stack:
        engines = {
            arm.name: stack.enter_context(running(arm, env.get(arm.name, _NOTHING))) for arm in arms
        }
        for number in range(1 - WARM_UP_ROUNDS, rounds + 1):
            for name, engine in engines.items():
                if number == 1:
                    before[name] = engine.metrics()
                calls[name] += ring_round(engine, ring, number, ring.claims)
        runs = {
            arm.name: ArmRun(
                arm,
                engines[arm.name].flags,
                calls[arm.name],
                prefetch_figures(before[arm.name], engines[arm.name].metrics()),
            )
            for arm in arms
        }
    for name, run in runs.items():
        summary = summarize(run.calls)
        print(
            f"{name}: hit rate {summary['hit_rate']:.1%}, from the device "
            f"{summary['served_from_device']:.0%}, TTFT {summary['ttft_p50_s']:.3f} s "
            f"(p95 {summary['ttft_p95_s']:.3f} s)",
            flush=True,
        )
    return runs


def arguments(description: str | None, result: str, rounds: int) -> argparse.ArgumentParser:
    """A parser with what all of these benchmarks take."""
    parser = argparse.ArgumentParser(description=(description or "").partition("\n")[0])
    parser.add_argument(
        "--rounds", type=positive, default=rounds, help="measured (default: %(default)s)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the text (default: %(default)s)")
    parser.add_argument("--output", type=Path, default=RESULTS / f"prefetch_{result}.json")
    return parser


def positive(text: str) -> int:
    """A whole number above 0, for argparse."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is not above 0")
    return value
