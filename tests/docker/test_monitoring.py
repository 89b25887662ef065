"""The Grafana dashboard, Prometheus's configuration and its alerts, against the real metrics."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.metric_names import kvflow_series, service_metrics, sglang_series

promql_parser = pytest.importorskip("promql_parser", reason="run `make install-dev`")

DOCKER = Path(__file__).parents[2] / "docker"
DASHBOARD = json.loads((DOCKER / "grafana" / "dashboards" / "kvflow.json").read_text())
PROMETHEUS = yaml.safe_load((DOCKER / "prometheus" / "prometheus.yml").read_text())
ALERTS = yaml.safe_load((DOCKER / "prometheus" / "alerts.yml").read_text())
# Of the process, from the service's registry; of Prometheus itself.
PROCESS_SERIES = {"process_resident_memory_bytes", "process_cpu_seconds_total"}
SCRAPE_SERIES = {"up"}
SCRAPE_LABELS = {"job", "instance"}
GRAFANA_MACROS = {"$__rate_interval": "1m"}


def panels() -> Iterator[dict[str, Any]]:
    for panel in DASHBOARD["panels"]:
        yield panel
        yield from panel.get("panels", ())


def dashboard_expressions() -> list[tuple[str, str]]:
    return [
        (panel["title"], target["expr"])
        for panel in panels()
        for target in panel.get("targets", ())
    ]


def alert_expressions() -> list[tuple[str, str]]:
    return [(rule["alert"], rule["expr"]) for group in ALERTS["groups"] for rule in group["rules"]]


def parsed(expression: str) -> Any:
    for macro, value in GRAFANA_MACROS.items():
        expression = expression.replace(macro, value)
    return promql_parser.parse(expression)


def selectors(expression: str) -> list[Any]:
    """Every ``name{matchers}`` of an expression."""
    found: list[Any] = []

    def visit(node: Any) -> bool:
        if isinstance(node, promql_parser.VectorSelector):
            found.append(node)
        return True

    promql_parser.walk(parsed(expression), visit)
    return found


def test_the_walk_finds_all_names() -> None:
    expression = "sum by (x) (rate(a_total{l='1'}[5m])) / on (x) (b or clamp_min(c, 1)) > 0"
    assert [one.name for one in selectors(expression)] == ["a_total", "b", "c"]


@pytest.mark.parametrize(
    ("where", "expression"),
    dashboard_expressions() + alert_expressions(),
    ids=lambda value: value if len(value) < 60 else "",
)
def test_every_query_is_about_metrics_that_exist(where: str, expression: str) -> None:
    ours = kvflow_series()
    found = selectors(expression)
    assert found, where
    for selector in found:
        name = selector.name
        if name in PROCESS_SERIES | SCRAPE_SERIES:
            continue
        if name.startswith("sglang:"):
            assert name in sglang_series(), f"{where}: SGLang has no {name}"
            continue
        assert name in ours, f"{where}: there is no metric {name}"
        labels = {matcher.name for matcher in selector.matchers.matchers} - SCRAPE_LABELS
        assert labels <= ours[name], f"{where}: {name} has no labels {labels - ours[name]}"


@pytest.mark.parametrize(("where", "expression"), dashboard_expressions() + alert_expressions())
def test_groupings_and_legends_are_by_labels_that_exist(where: str, expression: str) -> None:
    ours = kvflow_series()
    known = SCRAPE_LABELS | {"le", "cache_source", "pool"}
    for selector in selectors(expression):
        known |= ours.get(selector.name, frozenset())
    for labels in re.findall(r"\b(?:by|on|without)\s*\(([^)]*)\)", expression):
        assert {label.strip() for label in labels.split(",")} <= known, where


def test_counters_are_queried_as_rates() -> None:
    counters = {name for name, metric in service_metrics().items() if metric.kind == "counter"}
    for where, expression in dashboard_expressions() + alert_expressions():
        for selector in selectors(expression):
            if selector.name in counters:
                assert re.search(rf"\b(rate|increase)\({re.escape(selector.name)}\b", expression), (
                    where
                )


def test_the_dashboard_covers_what_it_is_for() -> None:
    names = {one.name for _, expression in dashboard_expressions() for one in selectors(expression)}
    assert {
        "kvflow_hit_tokens_total",
        "kvflow_query_tokens_total",
        "kvflow_evicted_tokens_total",
        "kvflow_prefetch_outcome_tokens_total",
        "kvflow_events_total",
        "kvflow_workflows",
        "kvflow_engines_connected",
        "kvflow_http_request_duration_seconds_bucket",
        "sglang:time_to_first_token_seconds_bucket",
        "sglang:cached_tokens_total",
    } <= names


def test_panels_have_their_own_ids_and_do_not_overlap() -> None:
    ids = [panel["id"] for panel in panels()]
    assert len(ids) == len(set(ids))
    taken: set[tuple[int, int]] = set()
    for panel in panels():
        at = panel["gridPos"]
        assert at["x"] + at["w"] <= 24
        cells = {
            (x, y)
            for x in range(at["x"], at["x"] + at["w"])
            for y in range(at["y"], at["y"] + at["h"])
        }
        assert not cells & taken, panel["title"]
        taken |= cells


def test_every_data_source_is_the_variable_and_every_variable_is_defined() -> None:
    variables = {one["name"]: one for one in DASHBOARD["templating"]["list"]}
    assert variables["datasource"]["type"] == "datasource"
    for panel in panels():
        for part in [panel, *panel.get("targets", ())]:
            if panel["type"] != "row":
                assert part["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
    ours = kvflow_series()
    for one in variables.values():
        if one["type"] == "query":
            match = re.fullmatch(r"label_values\((\w+), (\w+)\)", one["definition"])
            assert match is not None
            assert match[2] in ours[match[1]] | SCRAPE_LABELS
    for where, expression in dashboard_expressions():
        used = set(re.findall(r"\$(\w+)", expression)) - {"__rate_interval"}
        assert used <= set(variables), where


def test_prometheus_scrapes_both_and_reads_the_alerts() -> None:
    for name in PROMETHEUS["rule_files"]:
        assert (DOCKER / "prometheus" / name).is_file()
    jobs = {one["job_name"]: one for one in PROMETHEUS["scrape_configs"]}
    assert set(jobs) == {"kvflow-service", "kvflow-engine"}
    for _, expression in alert_expressions():
        for job in re.findall(r'job="([^"]+)"', expression):
            assert job in jobs


def test_grafana_is_provisioned_with_both() -> None:
    folder = DOCKER / "grafana" / "provisioning"
    (source,) = yaml.safe_load((folder / "datasources" / "prometheus.yaml").read_text())[
        "datasources"
    ]
    (provider,) = yaml.safe_load((folder / "dashboards" / "kvflow.yaml").read_text())["providers"]
    scraped = PROMETHEUS["global"]["scrape_interval"]
    assert (source["type"], source["jsonData"]["timeInterval"]) == ("prometheus", scraped)
    assert provider["options"]["path"] == "/var/lib/grafana/dashboards"


def test_every_alert_says_what_is_wrong() -> None:
    for group in ALERTS["groups"]:
        for rule in group["rules"]:
            assert rule["annotations"]["summary"].endswith(".")
            assert rule["labels"]["severity"] in ("info", "warning")
