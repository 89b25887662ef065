"""Many workflows at once, far more context than the device holds: does holding some back pay?

``python -m benchmarks.prefetch.admission`` runs workflows side by side, a thread each. In each a
chat agent is called several times, with a history that grows by what its tool returned. Compared
are stock SGLang, KVFlow, and KVFlow with ``KVFLOW_ADMISSION_OVERCOMMIT``, without a host pool and
with one that holds part of what the device cannot.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any, Final

from benchmarks.prefetch.engines import (
    Arm,
    ArmRun,
    Comparison,
    Engine,
    arguments,
    positive,
    running,
)
from benchmarks.prefetch.workload import (
    Call,
    Message,
    prefetch_figures,
)
from kvflow.bench.prompts import words
from kvflow.demo.summary import percentile

__all__ = ["SETTINGS", "Chat", "arms", "completion"]

DEVICE_TOKENS: Final = 2048
OVERCOMMIT: Final = 1.2
SETTINGS: Final[Mapping[str, float | None]] = {"device-only": None, "host-pool": 2.0}
AGENT: Final = "assistant"
_SOON_S: Final = 0.1


@dataclass(frozen=True, slots=True)
class Chat:
    """What the workflows ask: a system prompt that all share, and a history of each one's own."""

    workflows: int = 8
    steps: int = 4
    system_words: int = 200
    tool_words: int = 225
    max_tokens: int = 8
    seed: int = 0

    def system(self) -> Message:
        return {"role": "system", "content": words(f"{self.seed} system", self.system_words)}

    def tool_result(self, workflow: int, step: int) -> Message:
        """What the workflow's tool returned before this step."""
        text = words(f"{self.seed} {workflow} returns {step}", self.tool_words)
        return {"role": "user", "content": text}


def arms(ratio: float | None) -> dict[str, Arm]:
    """The arms that are compared in one setting, by kind."""
    limit = {"KVFLOW_ADMISSION_OVERCOMMIT": f"{OVERCOMMIT:g}"}
    return {
        "stock": Arm("stock", "stock", DEVICE_TOKENS, ratio),
        "kvflow": Arm("kvflow", "kvflow", DEVICE_TOKENS, ratio),
        "kvflow, admission": Arm("kvflow, admission", "kvflow", DEVICE_TOKENS, ratio, env=limit),
    }


def run_workflow(engine: Engine, chat: Chat, number: int, start: threading.Barrier) -> list[Call]:
    """One workflow from its first call to its end."""
    workflow_id = f"w{number}"
    identity = {"client_id": "benchmark", "workflow_id": workflow_id, "agent_id": AGENT}
    messages = [chat.system()]
    calls = []
    start.wait()
    for step in range(1, chat.steps + 1):
        messages.append(chat.tool_result(number, step))
        reply = engine.ask(
            messages, max_tokens=chat.max_tokens, identity=identity, steps={AGENT: 0}
        )
        messages.append({"role": "assistant", "content": reply.text})
        calls.append(Call(workflow_id, step, reply))
    # Without a service the end of a workflow is seen by its time to live alone.
    engine.ask(
        [chat.system(), {"role": "user", "content": "end"}],
        max_tokens=1,
        identity={**identity, "ttl_s": _SOON_S},
        steps={AGENT: 0},
    )
    return calls


def completion(calls: Sequence[Call]) -> dict[str, float]:
    """When workflows that began together were through, and the longest wait for a first token."""
    begun_s = min(call.reply.started_s for call in calls)
    ends_s: dict[str, float] = {}
    for call in calls:
        end_s = call.reply.started_s + call.reply.total_s - begun_s
        ends_s[call.agent] = max(end_s, ends_s.get(call.agent, 0.0))
    total_s = max(ends_s.values())
    return {
        "total_s": total_s,
        "calls_per_s": len(calls) / total_s,
        "workflow_p50_s": percentile(list(ends_s.values()), 50),
        "workflow_p95_s": percentile(list(ends_s.values()), 95),
        "workflow_max_s": total_s,
        "longest_wait_s": max(call.reply.ttft_s for call in calls),
    }


def run_arm(arm: Arm, chat: Chat) -> ArmRun:
    with running(arm) as engine:
        before = engine.metrics()
        start = threading.Barrier(chat.workflows)
        with ThreadPoolExecutor(chat.workflows) as threads:
            futures = [
                threads.submit(run_workflow, engine, chat, number, start)
                for number in range(chat.workflows)
            ]
            calls = [call for future in futures for call in future.result()]
        return ArmRun(arm, engine.flags, calls, prefetch_figures(before, engine.metrics()))


def main(argv: Sequence[str] | None = None) -> None:
    parser = arguments(__doc__, "admission", rounds=1)
    parser.add_argument("--workflows", type=positive, default=Chat().workflows)
    parser.add_argument(
        "--steps", type=positive, default=Chat().steps, help="calls of each workflow"
    )
    parser.add_argument("--settings", nargs="+", choices=tuple(SETTINGS), default=tuple(SETTINGS))
    options = parser.parse_args(argv)
    chat = Chat(workflows=options.workflows, steps=options.steps, seed=options.seed)
    comparison = Comparison(
        options.output,
        options.seed,
        {
            **asdict(chat),
            "device_tokens": DEVICE_TOKENS,
            "hicache_ratios": dict(SETTINGS),
            "overcommit": OVERCOMMIT,
        },
    )
    runs: dict[str, ArmRun] = {}
    rows: list[dict[str, Any]] = []
    for setting in options.settings:
        for number in range(1, options.rounds + 1):
            for kind, arm in arms(SETTINGS[setting]).items():
                name = f"{setting}: {kind}, {number}"
                print(f"{name}: starting", flush=True)
                run = runs[name] = run_arm(arm, chat)
                done = completion(run.calls)
                row = run.written(setting=setting, kind=kind, round=number, completion=done)
                rows.append(row)
                print(
                    f"{name}: {done['total_s']:.1f} s, {done['calls_per_s']:.2f} calls/s, "
                    f"hit rate {row['summary']['hit_rate']:.1%}, "
                    f"longest wait {done['longest_wait_s']:.1f} s",
                    flush=True,
                )
                comparison.write(runs, rows)


if __name__ == "__main__":
    main()
