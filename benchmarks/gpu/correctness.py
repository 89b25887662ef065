"""Piece (a): the same prompt from every place its KV can be in, and from a place it is not in yet.

A prompt is answered cold; from the device; from host memory, loaded on demand; after a prefetch;
and while its prefetch is still under way, on a link that was made late. Tokens and log
probabilities have to be those of the cold run. The negative control is the last case without
KVFlow's waiting: it has to differ, or the case before it would show nothing.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

import httpx2

from benchmarks.gpu.controls import install_plugins
from benchmarks.gpu.engines import engine_flags
from benchmarks.gpu.shapes import CORRECTNESS
from kvflow.engine import EngineOptions, EngineProcess, free_port, prepare
from kvflow.engine.device import ConcreteDevice

__all__ = ["ENGINES", "TOLERANCE", "CorrectnessSetup", "Observed", "run_engine", "verdict"]

PAGE_TOKENS: Final = 16
DEVICE_TOKENS: Final = 1280
HOST_RATIO: Final = 4.0
PROMPT_TOKENS: Final = 240
FILLERS: Final = 6
"""Prompts that together displace everything else from the device."""
OUTPUT_TOKENS: Final = 8
CALL_LIMIT_S: Final = 120.0
ARRIVAL_LIMIT_S: Final = 20.0

TOLERANCE: Final = MappingProxyType({"cuda": 0.05, "cpu": 2e-4})
"""Of log probabilities. In half precision a prompt that is computed in two parts is rounded
otherwise than in one; on the CPU it is single precision."""

_LATE_CPU: Final = MappingProxyType({"KVFLOW_CPU_LINK_DELAY_S": "1.5"})

Place = str
"""``cold``, ``device``, ``host``, ``prefetched``, ``late`` or ``stale``."""

ENGINES: Final[Mapping[str, tuple[str, ...]]] = MappingProxyType(
    {
        "as-is": ("cold", "device", "host", "prefetched"),
        "late-copies": ("cold", "late"),
        "naive": ("cold", "stale"),
    }
)
"""The engines and what is asked of each."""


@dataclass(frozen=True, slots=True)
class CorrectnessSetup:
    """Where and on what. ``prompts``: how many different ones each engine gets."""

    device: ConcreteDevice
    model: Path
    folder: Path
    prompts: int = 3
    page_tokens: int = PAGE_TOKENS


@dataclass(frozen=True, slots=True)
class Observed:
    """One answer. The tiers are where its cached tokens were."""

    engine: str
    place: Place
    prompt: int
    prompt_tokens: int
    device_tokens: int
    host_tokens: int
    output_ids: tuple[int, ...]
    logprobs: tuple[float, ...]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def run_engine(
    setup: CorrectnessSetup, name: str, observe: Callable[[Observed], None]
) -> list[str]:
    """Start one of ``ENGINES`` and ask it everything; returns its flags.

    Raises:
        EnvironmentProblemError: it does not start.
        RuntimeError: it does not answer, or a prefetch never came.
    """
    env = {"KVFLOW_SERVICE_URL": "off", "KVFLOW_LOAD": "load"}
    plugins = ["kvflow_naive_prefetch"] if name == "naive" else []
    if name != "as-is":
        if setup.device == "cpu":
            env |= _LATE_CPU
        else:
            plugins.append("kvflow_late_copies")
    env |= install_plugins(setup.folder / f"plugins-{name}", plugins)
    options = EngineOptions(
        model=str(setup.model),
        device=setup.device,
        port=free_port(),
        radix="kvflow",
        page_size=setup.page_tokens,
        max_total_tokens=DEVICE_TOKENS,
        hicache_ratio=HOST_RATIO,
        extra_args=(
            *engine_flags(setup.device, dummy=False, max_running=4, context_tokens=1024),
            *("--random-seed", "0"),
        ),
        env=env,
    )
    process = EngineProcess(prepare(options), log_path=setup.folder / f"correctness-{name}.log")
    with process, closing(_Asker(process)) as asker:
        for number in range(setup.prompts):
            for place in ENGINES[name]:
                answer = asker.from_place(place, number)
                observe(_observed(name, place, number, answer))
    return process.command.shown_flags("random-weights")


def verdict(observed: Sequence[Observed], tolerance: float) -> dict[str, Any]:
    """Per place, how far answers are from the cold ones of the same engine and prompt.

    A place is ``shown`` where the cached tokens were really in the tier it stands for. ``equal``:
    all answers have the cold run's tokens, and log probabilities within ``tolerance``; of ``stale``
    the opposite is wanted, of every single answer.
    """
    cold = {(one.engine, one.prompt): one for one in observed if one.place == "cold"}
    found: dict[str, Any] = {}
    for one in observed:
        reference = cold[one.engine, one.prompt]
        place = found.setdefault(
            one.place, {"answers": 0, "shown": 0, "equal": 0, "largest_difference": 0.0}
        )
        same_ids = one.output_ids == reference.output_ids
        difference = max(
            abs(mine - its) for mine, its in zip(one.logprobs, reference.logprobs, strict=True)
        )
        place["answers"] += 1
        place["shown"] += _shown(one)
        place["equal"] += same_ids and difference <= tolerance
        place["largest_difference"] = max(place["largest_difference"], difference)
    expected = {name: (0 if name == "stale" else place["answers"]) for name, place in found.items()}
    return {
        "tolerance": tolerance,
        "places": found,
        "holds": bool(found)
        and all(
            place["shown"] == place["answers"] and place["equal"] == expected[name]
            for name, place in found.items()
        ),
    }


def _shown(one: Observed) -> bool:
    enough = one.prompt_tokens - 2 * PAGE_TOKENS
    if one.place == "cold":
        return one.device_tokens == one.host_tokens == 0
    if one.place == "host":
        return one.host_tokens >= enough
    return one.host_tokens == 0 and one.device_tokens >= enough


def _observed(engine: str, place: Place, number: int, answer: Mapping[str, Any]) -> Observed:
    meta = answer["meta_info"]
    tiers = meta.get("cached_tokens_details") or {"device": meta["cached_tokens"]}
    chosen = meta["output_token_logprobs"]
    return Observed(
        engine=engine,
        place=place,
        prompt=number,
        prompt_tokens=meta["prompt_tokens"],
        device_tokens=tiers.get("device") or 0,
        host_tokens=tiers.get("host") or 0,
        output_ids=tuple(entry[1] for entry in chosen),
        logprobs=tuple(round(entry[0], 6) for entry in chosen),
    )


class _Asker:
    """Brings a prompt's KV to a place, and asks."""

    def __init__(self, process: EngineProcess) -> None:
        self._process = process
        self._http = httpx2.Client(base_url=process.base_url, timeout=CALL_LIMIT_S, trust_env=False)
        self._fillers = 0

    def close(self) -> None:
        self._http.close()

    def from_place(self, place: Place, number: int) -> dict[str, Any]:
        ids = _tokens(f"prompt {number}", PROMPT_TOKENS)
        agent = f"agent-{number}"
        if place == "cold":
            # With steps that say it is not called again, nobody fetches it ahead.
            return self._ask(ids, self._hints(agent, {agent: None}, len(ids)))
        if place == "device":
            return self._ask(ids)
        self._displace()
        if place == "host":
            return self._ask(ids)
        before = self._prefetched_tokens()
        hello = _tokens(f"hello {number}", PAGE_TOKENS)
        self._ask(hello, self._hints("first", {"first": 0, agent: 1}, 0, workflow=agent))
        self._wait_until(lambda: self._prefetched_tokens() > before, "does not prefetch a prompt")
        if place == "prefetched":
            time.sleep(1.0)
        return self._ask(ids)

    def _displace(self) -> None:
        for _ in range(FILLERS):
            self._fillers += 1
            self._ask(_tokens(f"filler {self._fillers}", PROMPT_TOKENS))

    @staticmethod
    def _hints(
        agent: str, steps: Mapping[str, int | None], fixed: int, workflow: str | None = None
    ) -> dict[str, Any]:
        fields: dict[str, Any] = {"workflow_id": workflow or agent, "agent_id": agent}
        if fixed:
            fields["fixed_prefix_tokens"] = fixed
        return {"kvflow": fields, "kvflow_steps": dict(steps)}

    def _ask(self, ids: Sequence[int], hints: Mapping[str, Any] | None = None) -> dict[str, Any]:
        body = {
            "input_ids": list(ids),
            "sampling_params": {
                "temperature": 0,
                "max_new_tokens": OUTPUT_TOKENS,
                "ignore_eos": True,
                "custom_params": None if hints is None else dict(hints),
            },
            "return_logprob": True,
            "return_cached_tokens_details": True,
        }
        try:
            answer = self._http.post("/generate", json=body).raise_for_status().json()
        except httpx2.HTTPError as error:
            raise self._process.problem(f"failed a call ({error!r})") from error
        found: dict[str, Any] = answer
        return found

    def _prefetched_tokens(self) -> float:
        total = 0.0
        for line in self._http.get("/metrics").text.splitlines():
            if line.startswith("kvflow_prefetched_tokens_total"):
                total += float(line.rpartition(" ")[2])
        return total

    def _wait_until(self, met: Callable[[], bool], otherwise: str) -> None:
        deadline = time.monotonic() + ARRIVAL_LIMIT_S
        while not met():
            if time.monotonic() > deadline:
                raise self._process.problem(otherwise)
            time.sleep(0.005)


def _tokens(name: str, count: int) -> list[int]:
    """Random token ids, always the same for a name; none of them is special."""
    return random.Random(name).choices(range(16, CORRECTNESS.vocabulary), k=count)
