"""``docs/metrics.md`` names every metric there is, with its type and labels, and no other."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.metric_names import Metric, kvflow_series, plugin_metrics, service_metrics

DOC = (Path(__file__).parents[1] / "docs" / "metrics.md").read_text()


def documented(part: str) -> dict[str, Metric]:
    match = re.search(rf"<!-- {part} -->\n(.*?)<!-- end -->", DOC, re.DOTALL)
    assert match is not None
    rows = re.findall(r"^\| `(\w+)` \| (\w+) \| ?(.*?) \| .+ \|$", match[1], re.MULTILINE)
    assert len(rows) == match[1].count("\n") - 2, "a row has another form"
    return {
        name: Metric(kind, frozenset(re.findall(r"`(\w+)`", labels))) for name, kind, labels in rows
    }


def test_the_services_metrics_are_documented_and_the_reverse() -> None:
    assert documented("service") == service_metrics()


def test_the_plugins_metrics_are_documented_and_the_reverse() -> None:
    pytest.importorskip("sglang", reason="needs SGLang")
    for metric in (real := plugin_metrics()).values():
        assert "model_name" in metric.labels
    without = {
        name: Metric(metric.kind, metric.labels - {"model_name"}) for name, metric in real.items()
    }
    assert documented("plugin") == without


def test_names_end_in_their_unit() -> None:
    for name, metric in (service_metrics() | plugin_metrics()).items():
        assert name.endswith("_total") == (metric.kind == "counter"), name
        if metric.kind == "histogram":
            assert name.endswith(("_seconds", "_bytes")), name


def test_queries_name_metrics_that_exist() -> None:
    queries = DOC[DOC.index("## Questions") :]
    names = set(re.findall(r"\bkvflow_\w+", queries))
    assert len(names) >= 5
    assert names <= set(kvflow_series())
