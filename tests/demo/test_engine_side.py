from __future__ import annotations

from kvflow.demo.engine_side import parse_metrics

EXPOSITION = """\
# HELP kvflow_evicted_tokens_total Tokens evicted, by tier and kind of node.
# TYPE kvflow_evicted_tokens_total counter
kvflow_evicted_tokens_total{kind="prefix",model_name="a, \\"b\\" c",tier="device"} 480.0
kvflow_evicted_tokens_total{kind="suffix",model_name="m",tier="device"} 1.5e+03
kvflow_lease_held{model_name="m",pid="17"} 1.0
kvflow_eviction_decision_seconds_bucket{le="+Inf",model_name="m",tier="device"} 9.0
kvflow_eviction_decision_seconds_sum{model_name="m",tier="device"} 0.1
sglang:num_running_reqs{model_name="m"} 0.0
"""


def test_reads_the_plugins_samples_only() -> None:
    assert parse_metrics(EXPOSITION) == {
        'kvflow_evicted_tokens_total{kind="prefix",tier="device"}': 480.0,
        'kvflow_evicted_tokens_total{kind="suffix",tier="device"}': 1500.0,
        "kvflow_lease_held": 1.0,
    }


def test_an_engine_without_the_plugin_has_none() -> None:
    assert parse_metrics("sglang:num_running_reqs 0.0\n") == {}
