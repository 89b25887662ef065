"""A cost model of the engine on this machine, from calls that are timed on it.

``python -m benchmarks.simulation.calibrate --output costs.json`` starts an engine and writes its
cost model with all that was timed; ``kvflow simulate`` takes the file. `calibrate` does the same on
an engine that runs.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import repeat
from pathlib import Path
from typing import Any, Final, Self

import httpx2

from benchmarks.environment import write_result
from kvflow.engine import EngineOptions, EngineProcess, free_port, prepare
from kvflow.simulator.cost_files import written_cost_model
from kvflow.simulator.costs import CostModel
from kvflow.simulator.fitting import CopySample, DecodeSample, PrefillSample, Samples, fit

__all__ = [
    "MODEL",
    "SMOLLM2_FLOAT32_KV_BYTES",
    "Calibration",
    "Plan",
    "calibrate",
    "calibration_engine",
]

MODEL: Final = "smollm2"
SMOLLM2_FLOAT32_KV_BYTES: Final = 2 * 30 * 3 * 64 * 4
PAGE_TOKENS: Final = 16
DEVICE_TOKENS: Final = 3072
HOST_RATIO: Final = 4.0
_LIMIT_S: Final = 300.0
_DECODE_ATTEMPTS: Final = 3
_LEAST_LOAD_S: Final = 1e-6
"""A load that took no longer than computing alone would have."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What is timed. Lengths in tokens.

    Attributes:
        loads: prefixes that are read from the host at the end, if there is a host tier.
        decodes: ``(sequences, context)``: requests at the same time, each with a prompt this long.
        decode_steps: of each of those.
        after: ``(new, before)``: new tokens after the first ``before`` of the longest prompt.
    """

    loads: tuple[int, ...] = (256, 640)
    decodes: tuple[tuple[int, int], ...] = (
        *((1, 64), (1, 384), (1, 640), (1, 896)),
        *((2, 128), (2, 384), (4, 128), (4, 448)),
    )
    decode_steps: int = 10
    after: tuple[tuple[int, int], ...] = ((48, 896), (128, 768), (64, 448), (128, 256))


@dataclass(frozen=True, slots=True)
class Timed:
    """One call to the engine, seconds from when it was sent."""

    prompt_tokens: int
    cached_tokens: int
    host_tokens: int
    token_s: tuple[float, ...]
    """When each output token came."""


@dataclass(frozen=True, slots=True)
class Calibration:
    """A cost model, what it was fitted to, and how long that took."""

    costs: CostModel
    samples: Samples
    took_s: float

    def written(self) -> dict[str, Any]:
        return {
            "costs": written_cost_model(self.costs),
            "samples": asdict(self.samples),
            "took_s": self.took_s,
        }


class _Client:
    """Calls with token ids; may be used by several threads."""

    def __init__(
        self,
        base_url: str,
        seed: int,
        clock: Callable[[], float],
        transport: httpx2.BaseTransport | None,
    ) -> None:
        self._http = httpx2.Client(
            base_url=base_url, timeout=_LIMIT_S, trust_env=False, transport=transport
        )
        self._random = random.Random(seed)
        self.clock = clock

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._http.close()

    def ids(self, count: int) -> list[int]:
        """A prompt that was never asked before, but for odd chances."""
        return self._random.choices(range(1000, 40_000), k=count)

    def empty(self) -> None:
        """Empty all tiers of the cache; waits until nothing runs."""
        deadline = time.monotonic() + _LIMIT_S
        while not self._http.post("/flush_cache").is_success:
            if time.monotonic() > deadline:
                raise RuntimeError("the engine did not empty its cache")
            time.sleep(0.05)

    def ask(self, ids: Sequence[int], tokens: int = 1) -> Timed:
        """Generate so many tokens, greedily.

        Raises:
            RuntimeError: the engine reports an error.
        """
        body = {
            "input_ids": list(ids),
            "sampling_params": {"max_new_tokens": tokens, "temperature": 0, "ignore_eos": True},
            "stream": True,
        }
        at_s: list[float] = []
        told: dict[str, Any] = {}
        started_s = self.clock()
        with self._http.stream("POST", "/generate", json=body) as answer:
            answer.raise_for_status()
            for line in answer.iter_lines():
                data = line.removeprefix("data:").strip()
                if not line.startswith("data:") or data == "[DONE]":
                    continue
                chunk = json.loads(data)
                if "error" in chunk:
                    raise RuntimeError(f"the engine reports {chunk['error']}")
                told = chunk["meta_info"]
                now_s = self.clock() - started_s
                at_s += [now_s] * (told["completion_tokens"] - len(at_s))
        tiers = told.get("cached_tokens_details") or {}
        return Timed(
            told["prompt_tokens"], told["cached_tokens"], tiers.get("host") or 0, tuple(at_s)
        )


def calibrate(
    base_url: str,
    kv_bytes_per_token: int = SMOLLM2_FLOAT32_KV_BYTES,
    plan: Plan = Plan(),
    *,
    name: str = "this machine",
    seed: int = 0,
    clock: Callable[[], float] = time.perf_counter,
    transport: httpx2.BaseTransport | None = None,
) -> Calibration:
    """Time an idle engine and fit a cost model to it. Empties its cache before and after.

    Its device tier should hold the prompts of the largest decode, and fewer than all: the first
    ones, for the loads, have to be in the host tier alone in the end.
    """
    begun_s = clock()
    prefills: list[PrefillSample] = []
    decodes: list[DecodeSample] = []
    with _Client(base_url, seed, clock, transport) as client:
        client.ask(client.ids(64), 2)
        client.empty()

        def cold(length: int) -> list[int]:
            prompt = client.ids(length)
            prefills.append(_prefill(client.ask(prompt)))
            return prompt

        for_loads = [cold(length) for length in plan.loads]
        for sequences, context in plan.decodes:
            prompts = [cold(context) for _ in range(sequences)]
            decodes.append(_decode(client, prompts, plan.decode_steps))
            if context == max(length for _, length in plan.decodes):
                for new, before in plan.after:
                    asked = [*prompts[0][:before], *client.ids(new)]
                    prefills.append(_prefill(client.ask(asked)))
        known = fit(name, kv_bytes_per_token, Samples(prefills, decodes))
        loads = _loads(client, for_loads, known)
        client.empty()
    samples = Samples(prefills, decodes, loads)
    return Calibration(fit(name, kv_bytes_per_token, samples), samples, clock() - begun_s)


def _prefill(timed: Timed) -> PrefillSample:
    return PrefillSample(
        timed.prompt_tokens - timed.cached_tokens, timed.cached_tokens, timed.token_s[0]
    )


def _decode(client: _Client, prompts: Sequence[Sequence[int]], steps: int) -> DecodeSample:
    """Mean time of a step while requests with these prompts, which are cached, all decode.

    On a busy machine one may be over before another begins; then all are asked for more.

    Raises:
        RuntimeError: they never decoded at the same time.
    """
    for _ in range(_DECODE_ATTEMPTS):
        with ThreadPoolExecutor(len(prompts)) as pool:
            times = list(pool.map(_since, repeat(client), prompts, repeat(steps + 4)))
        # From when the last of them is past its prefill to when the first of them ends.
        begin_s = max(one[1] for one in times)
        end_s = min(one[-1] for one in times)
        inside = [at_s for at_s in times[0] if begin_s <= at_s <= end_s]
        if len(inside) > steps // 2 and inside[-1] > inside[0]:
            context_tokens = sum(map(len, prompts)) + len(prompts) * steps / 2
            return DecodeSample(
                len(prompts), context_tokens, (inside[-1] - inside[0]) / (len(inside) - 1)
            )
        steps *= 2
    raise RuntimeError(f"{len(prompts)} requests did not decode at the same time")


def _since(client: _Client, prompt: Sequence[int], tokens: int) -> list[float]:
    """When each token came, on one clock for all threads."""
    sent_s = client.clock()
    return [sent_s + at_s for at_s in client.ask(prompt, tokens).token_s]


def _loads(client: _Client, prompts: Sequence[Sequence[int]], known: CostModel) -> list[CopySample]:
    """Ask again for prompts of which the host tier has the prefix: what that takes beyond computing
    is the load. Empty where there is no host tier."""
    samples = []
    for prompt in prompts:
        timed = client.ask([*prompt, *client.ids(2 * PAGE_TOKENS)])
        if timed.host_tokens:
            new = timed.prompt_tokens - timed.cached_tokens
            computing_s = known.prefill_s([(new, timed.cached_tokens)])
            load_s = max(_LEAST_LOAD_S, timed.token_s[0] - computing_s)
            samples.append(CopySample(timed.host_tokens, load_s))
    return samples


@contextmanager
def calibration_engine(host: bool) -> Iterator[EngineProcess]:
    """A stock engine like those of the scenarios, big enough for `calibrate`'s plan."""
    options = EngineOptions(
        model=MODEL,
        device="cpu",
        port=free_port(),
        radix="stock",
        page_size=PAGE_TOKENS,
        max_total_tokens=DEVICE_TOKENS,
        hicache_ratio=HOST_RATIO if host else None,
        extra_args=("--random-seed", "0"),
    )
    with EngineProcess(prepare(options)) as process:
        yield process


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--no-host", action="store_true", help="without a host tier")
    parser.add_argument("--seed", type=int, default=0, help="of the prompts (default: 0)")
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args(argv)
    with calibration_engine(not options.no_host) as engine:
        found = calibrate(engine.base_url, seed=options.seed)
    write_result(options.output, found.written())
    print(f"{options.output}: {found.costs}")


if __name__ == "__main__":
    main()
