"""What the demo asks of a running engine besides its work: warm-up, flush, metrics."""

from __future__ import annotations

import re
import time
from typing import Final

import httpx2

from kvflow.engine import EngineProcess

__all__ = ["EngineSide", "parse_metrics"]

_TIMEOUT_S: Final = 60.0
_FLUSH_LIMIT_S: Final = 30.0
_LINK_LIMIT_S: Final = 20.0
_POLL_S: Final = 0.1
_SAMPLE: Final = re.compile(r"^(?P<name>[a-zA-Z_:][\w:]*)(?:\{(?P<labels>.*)\})? (?P<value>\S+)$")
_LABEL: Final = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')
_UNINTERESTING_LABELS: Final = ("model_name", "pid")


class EngineSide:
    """A few calls to one engine; closes its connection at the end of the block."""

    def __init__(self, engine: EngineProcess) -> None:
        self._engine = engine
        self._http = httpx2.Client(base_url=engine.base_url, timeout=_TIMEOUT_S, trust_env=False)

    def close(self) -> None:
        self._http.close()

    def warm_up(self) -> None:
        """Take the first request's one-off costs, then leave all tiers of the cache empty.

        Raises:
            EnvironmentProblemError: the engine does not answer, or does not become idle.
        """
        body = {
            "model": "default",
            "messages": [{"role": "user", "content": "Say hello."}],
            "max_tokens": 4,
            "temperature": 0,
        }
        try:
            self._http.post("/v1/chat/completions", json=body).raise_for_status()
            # SGLang does this by itself at the end of its start, if it already listens by then
            # (0.5.23, http_server.py); here it is done in every arm, or the garbage collector
            # would run in some only.
            self._http.post("/freeze_gc")
            deadline = time.monotonic() + _FLUSH_LIMIT_S
            while not self._http.post("/flush_cache").is_success:
                if time.monotonic() > deadline:
                    raise self._engine.problem("did not empty its cache")
                time.sleep(_POLL_S)
        except httpx2.HTTPError as error:
            raise self._engine.problem(f"failed at its first request ({error})") from error

    def wait_until_linked(self) -> None:
        """Wait until the engine says that it hears the KVFlow service.

        Raises:
            EnvironmentProblemError: it does not within 20 s.
        """
        deadline = time.monotonic() + _LINK_LIMIT_S
        while self.kvflow_metrics().get("kvflow_lease_held") != 1:
            if time.monotonic() > deadline:
                raise self._engine.problem(
                    f"has not heard the KVFlow service for {_LINK_LIMIT_S:.0f} s"
                )
            time.sleep(_POLL_S)

    def kvflow_metrics(self) -> dict[str, float]:
        """The plugin's counters and gauges now; empty without the plugin.

        Raises:
            EnvironmentProblemError: the engine does not answer.
        """
        try:
            return parse_metrics(self._http.get("/metrics").raise_for_status().text)
        except httpx2.HTTPError as error:
            raise self._engine.problem(f"does not tell its metrics ({error})") from error


def parse_metrics(text: str) -> dict[str, float]:
    """KVFlow's samples in a Prometheus exposition, as ``name{label="value"}``; no histograms."""
    samples: dict[str, float] = {}
    for line in text.splitlines():
        found = _SAMPLE.match(line)
        if found is None or not found["name"].startswith("kvflow_"):
            continue
        if found["name"].endswith(("_bucket", "_sum", "_count", "_created")):
            continue
        labels = [
            f'{name}="{value}"'
            for name, value in _LABEL.findall(found["labels"] or "")
            if name not in _UNINTERESTING_LABELS
        ]
        key = found["name"] + (f"{{{','.join(labels)}}}" if labels else "")
        samples[key] = samples.get(key, 0.0) + float(found["value"])
    return samples
