"""Tells the service what this engine's cache holds and did: ``POST /v1/engines/{id}/report``.

A thread of the first rank asks for a snapshot, waits until the scheduler's thread has gathered it
at its step boundaries, and posts it. The scheduler's thread waits for nothing. If the service is
away, or does not take reports, nothing is gathered until it is time to try again.
"""

from __future__ import annotations

import logging
import threading
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote

import httpx2
from pydantic import ValidationError

from kvflow import __version__
from kvflow.protocol import (
    CacheTier,
    EngineReport,
    EngineTotals,
    FirstTokenTimes,
    PrefixPlacement,
    ReportReceipt,
)
from kvflow.sglang_plugin.service_connection import key_headers, log_no_requests, uses_proxies
from kvflow.sglang_plugin.settings import PluginSettings
from kvflow.sglang_plugin.survey import Placement, PrefixSurvey, pool_use
from kvflow.sglang_plugin.tally import FIRST_TOKEN_BOUNDS_S, FirstTokenTimer, Tally
from kvflow.sglang_plugin.weights import AgentKey

if TYPE_CHECKING:
    from kvflow.sglang_plugin.cache import KVFlowRadixCache

__all__ = ["EngineReporter", "Snapshot"]

logger = logging.getLogger(__name__)

TIMEOUT_S: Final = 2.0
AWAY_S: Final = 10.0
"""Longest pause between two attempts to reach a service that is away."""
REFUSED_S: Final = 300.0
"""Pause after the service has said that it takes no reports (an older one), or not ours."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What the scheduler's thread hands to the reporter's: copies, nothing that lives on."""

    device: tuple[int, int] | None
    host: tuple[int, int] | None
    storage: bool
    waiting: int
    running: int
    totals: Mapping[str, int]
    first_token_counts: tuple[int, ...]
    agents: Mapping[AgentKey, Placement]
    agents_known: int


class EngineReporter:
    """Reports every ``interval_s``, for as long as the service takes it.

    ``poll`` belongs to the scheduler's thread, all else to the reporter's own.

    Args:
        service_url: where the service is.
        settings: engine id, key and interval.
        tally: what was counted so far.
        timer: times to first token so far.
        model: name of the model served.
        engine_version: such as ``sglang 0.5.23``.
    """

    def __init__(
        self,
        service_url: str,
        settings: PluginSettings,
        *,
        tally: Tally,
        timer: FirstTokenTimer,
        model: str,
        engine_version: str,
    ) -> None:
        self._settings = settings
        self._interval_s = settings.report_interval_s or 2.0
        self._url = f"{service_url}/v1/engines/{quote(settings.engine_id, safe='')}/report"
        self._tally = tally
        self._timer = timer
        self._model = model
        self._engine_version = engine_version
        self._run_id = uuid.uuid4().hex
        self._started_s = time.monotonic()
        self._wanted = False
        self._survey: PrefixSurvey | None = None
        self._snapshot: Snapshot | None = None
        self._gathered = threading.Event()
        self._stop = threading.Event()
        self._number = 0
        self._sent: Mapping[AgentKey, Placement] | None = None
        self._complained: str | None = None
        self._thread = threading.Thread(target=self._run, name="kvflow-reporter", daemon=True)

    def start(self) -> None:
        """Report in the background; never blocks, never raises."""
        log_no_requests()
        self._thread.start()

    def close(self, timeout_s: float = 2.0) -> None:
        """Stop reporting; waits for a report that is on its way, for ``timeout_s`` at most."""
        self._stop.set()
        self._gathered.set()
        if self._thread.is_alive():
            self._thread.join(timeout_s)

    @property
    def gathering(self) -> bool:
        """Whether ``poll`` wants to be called again soon."""
        return self._survey is not None

    def poll(self, cache: KVFlowRadixCache, scheduler: Any) -> None:
        """On the scheduler's thread, at each step boundary: do a part of what is wanted.

        Nothing where nothing is wanted; else a bounded number of look-ups. Never raises.
        """
        if not self._wanted:
            return
        try:
            if self._survey is None:
                self._survey = PrefixSurvey(cache)
            if not self._survey.go_on():
                return
            self._snapshot = self._gather(cache, scheduler, self._survey.found)
        except Exception:
            logger.exception("KVFlow: a report to the service could not be gathered")
            self._snapshot = None
        self._survey = None
        self._wanted = False
        self._gathered.set()

    def _gather(
        self, cache: KVFlowRadixCache, scheduler: Any, agents: Mapping[AgentKey, Placement]
    ) -> Snapshot:
        controller = cache.cache_controller
        return Snapshot(
            device=pool_use(cache.token_to_kv_pool_allocator),
            host=None if controller is None else pool_use(controller.mem_pool_host),
            storage=bool(getattr(cache, "enable_storage", False)),
            waiting=len(getattr(scheduler, "waiting_queue", None) or ()),
            running=len(getattr(getattr(scheduler, "running_batch", None), "reqs", None) or ()),
            totals=self._tally.totals.as_dict(),
            first_token_counts=tuple(self._timer.counts),
            agents=agents,
            agents_known=cache.kvflow_weights.prefixes_known,
        )

    def _run(self) -> None:
        headers = key_headers(self._settings)
        trust_env = uses_proxies(self._url)
        pause_s = self._interval_s
        while not self._stop.wait(pause_s):
            snapshot = self._next_snapshot()
            if snapshot is None:
                continue
            try:
                with httpx2.Client(timeout=TIMEOUT_S, trust_env=trust_env) as client:
                    pause_s = self._report(client, headers, snapshot)
                    # One connection for as long as all is well.
                    while pause_s == self._interval_s and not self._stop.wait(pause_s):
                        if (snapshot := self._next_snapshot()) is not None:
                            pause_s = self._report(client, headers, snapshot)
            except (httpx2.HTTPError, OSError):
                # The channel, which needs the service more, says that it is away.
                self._sent = None
                pause_s = min(max(pause_s * 2, self._interval_s), max(AWAY_S, self._interval_s))
            except Exception:
                self._sent = None
                self._complain("unexpected error", exc_info=True)
                pause_s = REFUSED_S

    def _next_snapshot(self) -> Snapshot | None:
        """Ask for one and wait for it. None when the engine is to stop, or could give none."""
        self._gathered.clear()
        self._wanted = True
        while not self._gathered.wait(1.0):
            if self._stop.is_set():
                return None
        return None if self._stop.is_set() else self._snapshot

    def _report(
        self, client: httpx2.Client, headers: Mapping[str, str], snapshot: Snapshot
    ) -> float:
        """Post it; how long to pause until the next one.

        Raises:
            httpx2.HTTPError, OSError: the service is away.
        """
        self._number += 1
        body = self._message(snapshot).model_dump_json()
        answer = client.post(
            self._url, content=body, headers={**headers, "Content-Type": "application/json"}
        )
        if answer.status_code >= 500 or answer.status_code == 429:
            self._sent = None
            return max(AWAY_S, self._interval_s)
        if answer.status_code != 200:
            self._sent = None
            self._complain(f"HTTP {answer.status_code}")
            return max(REFUSED_S, self._interval_s)
        try:
            receipt = ReportReceipt.model_validate_json(answer.content)
        except ValidationError:
            self._complain("an answer that is no receipt")
            return REFUSED_S
        self._complained = None
        self._sent = None if receipt.send_all else snapshot.agents
        return self._interval_s

    def _message(self, snapshot: Snapshot) -> EngineReport:
        before = self._sent
        changed = [
            (key, placement)
            for key, placement in snapshot.agents.items()
            if before is None or before.get(key) != placement
        ]
        forgotten = [] if before is None else [key for key in before if key not in snapshot.agents]
        return EngineReport(
            run_id=self._run_id,
            number=self._number,
            interval_s=self._interval_s,
            uptime_s=time.monotonic() - self._started_s,
            model=self._model[:256],
            engine_version=self._engine_version[:256],
            plugin_version=__version__,
            waiting_requests=snapshot.waiting,
            running_requests=snapshot.running,
            device=_tier(snapshot.device),
            host=_tier(snapshot.host),
            storage=snapshot.storage,
            totals=EngineTotals(**snapshot.totals),
            first_token=FirstTokenTimes(
                bounds_s=list(FIRST_TOKEN_BOUNDS_S), counts=list(snapshot.first_token_counts)
            ),
            agents_are="all" if before is None else "changes",
            agents=[
                PrefixPlacement(client_id=client_id, agent_id=agent_id, **placement._asdict())
                for (client_id, agent_id), placement in changed
            ],
            forgotten=forgotten,
            agents_known=snapshot.agents_known,
        )

    def _complain(self, reason: str, *, exc_info: bool = False) -> None:
        if reason != self._complained:
            self._complained = reason
            logger.info(
                "KVFlow: %s takes no reports of this engine (%s); trying again in %d s",
                self._settings.service_url,
                reason,
                max(REFUSED_S, self._interval_s),
                exc_info=exc_info,
            )


def _tier(use: tuple[int, int] | None) -> CacheTier | None:
    return None if use is None else CacheTier(size_tokens=use[0], used_tokens=use[1])
