"""Request metadata is advisory: what cannot be used is ignored."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvflow.sglang_plugin.metadata import parse_metadata

GOOD = {"workflow_id": "w", "agent_id": "a"}


def test_defaults() -> None:
    metadata = parse_metadata({"kvflow": GOOD})
    assert metadata is not None
    assert (metadata.client_id, metadata.steps_to_execution, metadata.ttl_s) == (
        "default",
        None,
        600,
    )


def test_steps_come_under_their_own_key() -> None:
    metadata = parse_metadata({"kvflow": GOOD, "kvflow_steps": {"a": 0, "b": None}})
    assert metadata is not None
    assert metadata.steps_to_execution == {"a": 0, "b": None}


@pytest.mark.parametrize(
    "custom_params",
    [
        None,
        "kvflow",
        {},
        {"kvflow": None},
        {"kvflow": {"workflow_id": "w"}},
        {"kvflow": {**GOOD, "agent_id": ""}},
        {"kvflow": {**GOOD, "fixed_prefix_tokens": -1}},
        {"kvflow": {**GOOD, "ttl_s": 0}},
        {"kvflow": GOOD, "kvflow_steps": {"a": -1}},
        {"kvflow": GOOD, "kvflow_steps": {"a": "soon"}},
    ],
)
def test_unusable_is_none(custom_params: object) -> None:
    assert parse_metadata(custom_params) is None


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    )
)
def test_never_raises(value: object) -> None:
    parse_metadata({"kvflow": value, "kvflow_steps": value})
    parse_metadata(value)


@pytest.mark.parametrize("traceparent", [None, 1, {}, "nonsense"])
def test_an_odd_traceparent_costs_no_hints(traceparent: object) -> None:
    metadata = parse_metadata({"kvflow": {**GOOD, "traceparent": traceparent}})
    assert metadata is not None
    assert metadata.workflow_id == "w"
