"""What the first rank's scheduler thread does for the engine's reports to the service."""

from __future__ import annotations

import logging
import time
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from kvflow.sglang_plugin.metrics import EngineMetrics
from kvflow.sglang_plugin.reporter import EngineReporter
from kvflow.sglang_plugin.settings import PluginSettings
from kvflow.sglang_plugin.tally import FirstTokenTimer, Tally

if TYPE_CHECKING:
    from kvflow.sglang_plugin.cache import KVFlowRadixCache

__all__ = ["Reporting"]

logger = logging.getLogger(__name__)


class Reporting:
    """Counts for the reports, and starts the thread that makes them at the first step.

    Nothing here raises or waits. ``tally`` takes the place of the engine's metrics and passes on
    to them.
    """

    def __init__(self, tally: Tally, timer: FirstTokenTimer, reporter: EngineReporter) -> None:
        self.tally = tally
        self._timer = timer
        self._reporter = reporter
        self._started = False

    @classmethod
    def of(cls, settings: PluginSettings, metrics: EngineMetrics, model: str) -> Reporting | None:
        """None where there is no service, or reports are off."""
        if settings.service_url is None or settings.report_interval_s is None:
            return None
        tally, timer = Tally(metrics), FirstTokenTimer()
        reporter = EngineReporter(
            settings.service_url,
            settings,
            tally=tally,
            timer=timer,
            model=model,
            engine_version=f"sglang {version('sglang')}",
        )
        return cls(tally, timer, reporter)

    @property
    def gathering(self) -> bool:
        """Whether the next step should come soon, for the rest of a snapshot."""
        return self._reporter.gathering

    def poll(self, cache: KVFlowRadixCache, scheduler: Any) -> None:
        """At each step boundary."""
        if not self._started:
            self._started = True
            self._reporter.start()
        self._reporter.poll(cache, scheduler)

    def arrived(self, request: Any) -> None:
        """A request came in."""
        self._timer.arrived(getattr(request, "rid", None), time.monotonic())

    def prefilled(self, batch: Any) -> None:
        """The results of a batch with prefills are in."""
        try:
            self._timer.batch_done(batch, time.monotonic())
        except Exception:
            logger.exception("KVFlow: times to first token were not taken; the engine goes on")
