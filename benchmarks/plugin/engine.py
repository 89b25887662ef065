"""What KVFlow's tree core and hooks cost a real engine, beside SGLang's Rust and Python cores.

Engines of all arms live at the same time and take turns, a burst of requests each. The model is as
good as none (one layer, width 64, random weights): a forward of it is the shortest there can be, so
whatever the scheduler's thread does besides is at its largest beside it. A small plugin of the
benchmark's own counts the CPU time of that thread, with and without forwards, because wall times
of a shared machine vary by more than what is looked for.
"""

from __future__ import annotations

import json
import random
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import httpx2

from benchmarks.plugin.samples import in_turn, ratios, summary
from kvflow.engine import EngineOptions, EngineProcess, free_port, prepare
from kvflow.engine.options import RadixCache
from tests.sglang_plugin.engine_plugins import install_plugin

__all__ = ["ARMS", "SCENARIOS", "Scenario", "measure_engines"]

PAGE_TOKENS: Final = 16
DEVICE_TOKENS: Final = 65_536
AGENTS: Final = 10
_REPORT_VARIABLE: Final = "KVFLOW_BENCHMARK_REPORT"
_CALL_LIMIT_S: Final = 120.0
_SETTLED_S: Final = 0.1

CONFIG: Final[Mapping[str, Any]] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 1,
    "num_key_value_heads": 1,
    "head_dim": 64,
    "hidden_act": "silu",
    "max_position_embeddings": 16_384,
    "rms_norm_eps": 1e-5,
    "vocab_size": 1024,
    "tie_word_embeddings": True,
    "torch_dtype": "float32",
    "bos_token_id": 1,
    "eos_token_id": 2,
}

PROBE: Final = '''
"""Counts the CPU time of the scheduler's thread: of steps that had a batch, and of forwards."""

import json
import os
import time


class Probe:
    def __init__(self, path):
        self.path = path
        self.total = {"steps": 0, "cpu_s": 0.0, "forward_cpu_s": 0.0, "wall_s": 0.0}
        self.begun_s = self.begun_wall_s = None
        self.forward_s = 0.0
        self.ran = self.ran_before = False

    def step(self, *args, **kwargs):
        now_s, now_wall_s = time.thread_time(), time.perf_counter()
        if self.begun_s is not None and (self.ran or self.ran_before):
            self.total["steps"] += self.ran
            self.total["cpu_s"] += now_s - self.begun_s
            self.total["wall_s"] += now_wall_s - self.begun_wall_s
            self.total["forward_cpu_s"] += self.forward_s
        self.ran_before, self.ran, self.forward_s = self.ran, False, 0.0
        self.begun_s, self.begun_wall_s = now_s, now_wall_s

    def forward(self, original, *args, **kwargs):
        self.ran = True
        return self.timed(original, *args, **kwargs)

    def timed(self, original, *args, **kwargs):
        begun_s = time.thread_time()
        try:
            return original(*args, **kwargs)
        finally:
            self.forward_s += time.thread_time() - begun_s

    def idle(self, *args, **kwargs):
        with open(self.path + ".new", "w") as file:
            json.dump(self.total, file)
        os.replace(self.path + ".new", self.path)


def register():
    from sglang.srt.plugins.hook_registry import HookRegistry, HookType

    probe = Probe(os.environ["KVFLOW_BENCHMARK_REPORT"])
    scheduler = "sglang.srt.managers.scheduler.Scheduler"
    HookRegistry.register(f"{scheduler}.ingest_requests", probe.step, HookType.BEFORE)
    HookRegistry.register(f"{scheduler}.run_batch", probe.forward, HookType.AROUND)
    HookRegistry.register(
        f"{scheduler}.launch_batch_sample_if_needed", probe.timed, HookType.AROUND
    )
    HookRegistry.register(f"{scheduler}.on_idle", probe.idle, HookType.BEFORE)
'''


@dataclass(frozen=True, slots=True)
class EngineArm:
    """One engine of the comparison; ``hints``: requests say whose they are and who is next."""

    name: str
    radix: RadixCache = "stock"
    core: str | None = None
    hints: bool = False


ARMS: Final = (
    EngineArm("rust"),
    EngineArm("python", core="python"),
    EngineArm("kvflow-idle", "kvflow"),
    EngineArm("kvflow", "kvflow", hints=True),
)


@dataclass(frozen=True, slots=True)
class Scenario:
    """A burst of requests: ``prefixes`` prefixes, each request one of them and some of its own."""

    name: str
    prefixes: int
    prefix_tokens: int
    fresh_tokens: int
    output_tokens: int
    requests: int

    def prompts(self, rng: random.Random, turn: int) -> list[list[int]]:
        """The prompts of a turn; the same for every arm."""
        vocabulary = range(3, int(CONFIG["vocab_size"]))
        made = []
        for number in range(self.requests):
            prefix = (turn * self.requests + number) % self.prefixes
            shared = random.Random(f"{self.name} {prefix}")
            made.append(
                shared.choices(vocabulary, k=self.prefix_tokens)
                + rng.choices(vocabulary, k=self.fresh_tokens)
            )
        return made


SCENARIOS: Final = (
    Scenario("short prompts, one token out", 20, 48, 16, 1, 64),
    Scenario("many small prefixes", 1000, 48, 16, 1, 64),
    Scenario("long prefixes", 10, 2048, 64, 16, 16),
    Scenario("decode", 10, 48, 16, 64, 16),
)


class TinyEngine:
    """A running engine of an arm, and the figures of its scheduler's thread."""

    def __init__(self, arm: EngineArm, process: EngineProcess, report: Path) -> None:
        self.arm = arm
        self._process = process
        self._report = report
        self._http = httpx2.Client(
            base_url=process.base_url, timeout=_CALL_LIMIT_S, trust_env=False
        )

    def close(self) -> None:
        self._http.close()

    def burst(self, scenario: Scenario, turn: int, prompts: Sequence[Sequence[int]]) -> Any:
        """All prompts in one call; returns each one's output and cached tokens.

        Raises:
            RuntimeError: the engine refuses; with the end of its log.
        """
        sampling = []
        for number in range(len(prompts)):
            agent = (turn * scenario.requests + number) % scenario.prefixes % AGENTS
            params: dict[str, Any] = {
                "temperature": 0,
                "max_new_tokens": scenario.output_tokens,
                "ignore_eos": True,
            }
            if self.arm.hints:
                params["custom_params"] = _hints(scenario, turn, agent)
            sampling.append(params)
        answer = self._http.post(
            "/generate", json={"input_ids": prompts, "sampling_params": sampling}
        )
        if answer.is_error:
            raise self._process.problem(f"failed a call ({answer.text})")
        return [(a["output_ids"], a["meta_info"]["cached_tokens"]) for a in answer.json()]

    def totals(self) -> dict[str, float]:
        """The probe's figures once the scheduler is idle."""
        time.sleep(_SETTLED_S)
        figures: dict[str, float] = json.loads(self._report.read_text())
        return figures


def _hints(scenario: Scenario, turn: int, agent: int) -> dict[str, Any]:
    steps = {f"a{other}": (other - agent) % AGENTS for other in range(AGENTS)}
    return {
        "kvflow": {
            "client_id": "benchmark",
            "workflow_id": f"{scenario.name} {turn % 8}",
            "agent_id": f"a{agent}",
        },
        "kvflow_steps": steps,
    }


@contextmanager
def _running(arm: EngineArm, folder: Path) -> Iterator[TinyEngine]:
    report = folder / f"{arm.name}.json"
    env = {
        **install_plugin(folder / "plugins", "kvflow_benchmark_probe", PROBE),
        _REPORT_VARIABLE: str(report),
        "KVFLOW_SERVICE_URL": "off",
    }
    if arm.core is not None:
        env["SGLANG_UNIFIED_RADIX_TREE_CORE_BACKEND"] = arm.core
    options = EngineOptions(
        model=str(folder / "model"),
        device="cpu",
        port=free_port(),
        radix=arm.radix,
        page_size=PAGE_TOKENS,
        max_total_tokens=DEVICE_TOKENS,
        extra_args=(
            *("--load-format", "dummy"),
            "--skip-tokenizer-init",
            *("--max-running-requests", "64"),
            *("--random-seed", "0"),
        ),
        env=env,
    )
    with (
        EngineProcess(prepare(options)) as process,
        closing(TinyEngine(arm, process, report)) as engine,
    ):
        yield engine


def measure_engines(turns: int, scenarios: Sequence[Scenario] = SCENARIOS) -> list[dict[str, Any]]:
    """``turns`` bursts of each scenario on each arm, arm by arm within each turn."""
    rows = []
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        (folder / "model").mkdir()
        (folder / "model" / "config.json").write_text(json.dumps(CONFIG))
        engines = {arm.name: stack.enter_context(_running(arm, folder)) for arm in ARMS}
        for scenario in scenarios:
            row = _measure_scenario(engines, scenario, turns)
            rows.append(row)
            print(f"engine, {scenario.name}: {_line(row)}", flush=True)
    return rows


def _measure_scenario(
    engines: Mapping[str, TinyEngine], scenario: Scenario, turns: int
) -> dict[str, Any]:
    rng = random.Random(scenario.name)
    seconds: dict[str, list[float]] = {name: [] for name in engines}
    scheduler_us: dict[str, list[float]] = {name: [] for name in engines}
    forward_us: dict[str, list[float]] = {name: [] for name in engines}
    steps: dict[str, float] = dict.fromkeys(engines, 0.0)
    hits: dict[str, int] = dict.fromkeys(engines, 0)
    identical = True
    warm_up = max(1, scenario.prefixes // scenario.requests) if scenario.prefixes < 100 else 1
    for turn in range(-warm_up, turns):
        prompts = scenario.prompts(rng, turn + warm_up)
        outputs = {}
        for name in in_turn(engines, turn):
            engine = engines[name]
            before = engine.totals()
            begun_s = time.perf_counter()
            answers = engine.burst(scenario, turn + warm_up, prompts)
            wall_s = time.perf_counter() - begun_s
            after = engine.totals()
            outputs[name] = [output for output, _ in answers]
            if turn < 0:
                continue
            forward_s = after["forward_cpu_s"] - before["forward_cpu_s"]
            cpu_s = after["cpu_s"] - before["cpu_s"]
            seconds[name].append(wall_s)
            scheduler_us[name].append((cpu_s - forward_s) / scenario.requests * 1e6)
            forward_us[name].append(forward_s / scenario.requests * 1e6)
            steps[name] += after["steps"] - before["steps"]
            hits[name] += sum(cached for _, cached in answers)
        identical = identical and all(output == outputs["rust"] for output in outputs.values())
    return {
        "scenario": asdict(scenario),
        "turns": turns,
        "outputs_identical": identical,
        "arms": {
            name: {
                "wall_s": summary(seconds[name]),
                "scheduler_us_per_request": summary(scheduler_us[name]),
                "forward_us_per_request": summary(forward_us[name]),
                "steps": steps[name],
                "cached_tokens": hits[name],
                "throughput_over_rust": ratios(seconds["rust"], seconds[name]),
                "scheduler_over_rust": ratios(scheduler_us[name], scheduler_us["rust"]),
            }
            for name in engines
        },
    }


def _line(row: Mapping[str, Any]) -> str:
    return ", ".join(
        f"{name} {arm['scheduler_us_per_request']['median']:.0f} us/request "
        f"(throughput {arm['throughput_over_rust']['median']:.3f})"
        for name, arm in row["arms"].items()
    )
