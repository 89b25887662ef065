"""Which metrics there really are: of the service, of the plugin, and of SGLang as installed."""

from __future__ import annotations

import functools
import json
import re
import subprocess
import sys
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from prometheus_client import CollectorRegistry

from kvflow.server.metrics import ServiceMetrics
from kvflow.server.mqtt.metrics import MqttMetrics

# In a process of its own, as the plugin's metrics are in the process's default registry.
_PLUGIN_PROGRAM = """
import json
from prometheus_client import REGISTRY
from kvflow.sglang_plugin.metrics import prometheus_metrics
from tests.metric_names import in_registry
prometheus_metrics("m")
kinds = in_registry(REGISTRY)
print(json.dumps({name: [m.kind, sorted(m.labels)] for name, m in kinds.items()}))
"""


@dataclass(frozen=True, slots=True)
class Metric:
    """``kind`` is Prometheus's: counter, gauge or histogram."""

    kind: str
    labels: frozenset[str]

    def series(self, name: str) -> list[str]:
        """Names under which it can be queried."""
        suffixes = ("_bucket", "_count", "_sum") if self.kind == "histogram" else ("",)
        return [name + suffix for suffix in suffixes]


def in_registry(registry: CollectorRegistry) -> dict[str, Metric]:
    """The ``kvflow_*`` metrics of a registry by name, also those that have no value yet."""
    found = {}
    for collector in registry._collector_to_names:
        labels = frozenset(getattr(collector, "_labelnames", ()))
        for family in collector.describe() if hasattr(collector, "describe") else ():
            name = family.name + ("_total" if family.type == "counter" else "")
            if name.startswith("kvflow_"):
                found[name] = Metric(family.type, labels)
    return found


def service_metrics() -> dict[str, Metric]:
    """Those that a service has with everything switched on."""
    registry = ServiceMetrics().registry
    MqttMetrics(registry)
    return in_registry(registry)


@functools.cache
def plugin_metrics() -> dict[str, Metric]:
    done = subprocess.run(
        [sys.executable, "-c", _PLUGIN_PROGRAM],
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        check=True,
    )
    return {
        name: Metric(kind, frozenset(labels))
        for name, (kind, labels) in json.loads(done.stdout).items()
    }


@functools.cache
def sglang_series() -> frozenset[str]:
    """Names under which SGLang's own metrics can be queried, read from its source.

    What is a histogram is not told apart: the suffixes of one are added to every name.
    """
    spec = find_spec("sglang")
    assert spec is not None
    assert spec.submodule_search_locations
    folder = Path(spec.submodule_search_locations[0]) / "srt" / "observability"
    names = {
        name
        for path in folder.glob("*.py")
        for name in re.findall(r'name="(sglang:\w+)"', path.read_text())
    }
    assert len(names) > 50, "SGLang's metrics are written down in another way now"
    return frozenset(
        name + suffix for name in names for suffix in ("", "_bucket", "_count", "_sum")
    )


def kvflow_series() -> dict[str, frozenset[str]]:
    """Names under which KVFlow's metrics can be queried, with their labels."""
    metrics = service_metrics() | plugin_metrics()
    return {
        series: metric.labels for name, metric in metrics.items() for series in metric.series(name)
    }
