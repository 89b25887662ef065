"""Real engines for tests: started once per set of options, reused, stopped at the end.

A start costs about 30 s, so tests share engines and flush the cache in between.  An idle engine
costs memory, not time; at most ``MAX_RUNNING`` are alive, the one unused for longest goes first.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Self

import httpx2

from kvflow.engine import EngineOptions, EngineProcess, free_port, prepare
from kvflow.engine.options import RadixCache

MAX_RUNNING = 2

_VOCABULARY = (
    *("river", "mountain", "market", "letter", "garden", "winter", "engine", "doctor", "bridge"),
    *("window", "silver", "captain", "forest", "number", "morning", "island", "paper", "village"),
    *("teacher", "harbour"),
)
_NOTHING: Mapping[str, str] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Answer:
    """What one request came back with."""

    text: str
    prompt_tokens: int
    cached_tokens: int
    device_tokens: int
    host_tokens: int
    body: Mapping[str, Any]


class Caller:
    """Makes calls to whatever answers OpenAI's API: an engine, or a front door before one."""

    def __init__(self, base_url: str, headers: Mapping[str, str] = _NOTHING) -> None:
        self.base_url = base_url
        self.http = httpx2.Client(
            base_url=base_url, headers=dict(headers), timeout=120, trust_env=False
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.http.close()

    def chat(
        self,
        messages: Sequence[Mapping[str, str]],
        *,
        max_tokens: int = 8,
        headers: Mapping[str, str] = _NOTHING,
        **body: Any,
    ) -> Answer:
        """One greedy chat completion; ``body`` adds to the request, e.g. ``custom_params``."""
        answer = self.http.post(
            "/v1/chat/completions",
            headers=dict(headers),
            json={
                "model": "default",
                "messages": list(messages),
                "max_tokens": max_tokens,
                "temperature": 0,
                "return_cached_tokens_details": True,
                **body,
            },
        )
        answer.raise_for_status()
        content: dict[str, Any] = answer.json()
        usage = content["usage"]
        details = (content.get("sglext") or {}).get("cached_tokens_details") or {}
        return Answer(
            text=content["choices"][0]["message"]["content"],
            prompt_tokens=usage["prompt_tokens"],
            cached_tokens=(usage.get("prompt_tokens_details") or {}).get("cached_tokens", 0),
            device_tokens=details.get("device", 0),
            host_tokens=details.get("host", 0),
            body=content,
        )


class RunningEngine(Caller):
    """A running engine and the few calls that tests make to it."""

    def __init__(self, process: EngineProcess) -> None:
        super().__init__(process.base_url)
        self.process = process

    def generate(self, **body: Any) -> dict[str, Any]:
        """SGLang's native route, for token ids and log probabilities."""
        answer = self.http.post("/generate", json=body)
        answer.raise_for_status()
        result: dict[str, Any] = answer.json()
        return result

    def flush(self, timeout_s: float = 30) -> None:
        """Empty all tiers of the cache; waits until the engine is idle enough to do so."""
        deadline = time.monotonic() + timeout_s
        while True:
            answer = self.http.post("/flush_cache")
            if answer.is_success:
                return
            if time.monotonic() > deadline:
                raise AssertionError(f"the cache was not flushed: {answer.text}")
            time.sleep(0.2)

    def metric(self, name: str, **labels: str) -> float:
        """The sum of a metric's samples that carry these labels; 0 if there are none."""
        total = 0.0
        for line in self.http.get("/metrics").text.splitlines():
            sample, _, value = line.rpartition(" ")
            bare = sample.partition("{")[0]
            if bare == name and all(f'{key}="{text}"' in sample for key, text in labels.items()):
                total += float(value)
        return total

    def log(self) -> str:
        return self.process.log_path.read_text(errors="replace")


class Engines:
    """Starts engines on demand and keeps the last few; ``close`` stops them all."""

    def __init__(self, log_dir: Path) -> None:
        self._log_dir = log_dir
        self._running: OrderedDict[object, RunningEngine] = OrderedDict()

    def start(
        self,
        *,
        radix: RadixCache = "stock",
        max_total_tokens: int = 6144,
        hicache_ratio: float | None = None,
        page_size: int | None = None,
        tp: int = 1,
        extra_args: Sequence[str] = (),
        env: Mapping[str, str] = _NOTHING,
    ) -> RunningEngine:
        """Return an engine with exactly these options, its cache empty.

        Log level, metrics and cache report are on.  A dead engine is started again.
        """
        key = (
            radix,
            max_total_tokens,
            hicache_ratio,
            page_size,
            tp,
            tuple(extra_args),
            tuple(sorted(env.items())),
        )
        if key in self._running:
            self._running.move_to_end(key)
            engine = self._running[key]
            if engine.process.is_running():
                engine.flush()
                return engine
            self._stop(key)
        while len(self._running) >= MAX_RUNNING:
            self._stop(next(iter(self._running)))
        options = EngineOptions(
            device="cpu",
            port=free_port(),
            radix=radix,
            max_total_tokens=max_total_tokens,
            hicache_ratio=hicache_ratio,
            page_size=page_size,
            tp=tp,
            extra_args=tuple(extra_args),
            env=env,
        )
        process = EngineProcess(
            prepare(options), log_path=self._log_dir / f"engine-{options.port}.log"
        )
        process.start()
        engine = RunningEngine(process)
        engine.flush()  # the start-up probe left its one token there
        self._running[key] = engine
        return engine

    def stop(self, engine: RunningEngine) -> None:
        """Stop one engine early, e.g. because a test broke it on purpose."""
        for key, running in list(self._running.items()):
            if running is engine:
                self._stop(key)

    def close(self) -> None:
        for key in list(self._running):
            self._stop(key)

    def _stop(self, key: object) -> None:
        engine = self._running.pop(key)
        engine.http.close()
        engine.process.stop()


def words(seed: str, count: int) -> Iterator[str]:
    """Ordinary words in an order that depends on ``seed``: text whose prefix no one shares."""
    state = sum((position + 1) * ord(letter) for position, letter in enumerate(seed)) or 1
    for _ in range(count):
        state = (state * 1103515245 + 12345) % 2**31
        yield _VOCABULARY[(state >> 16) % len(_VOCABULARY)]
