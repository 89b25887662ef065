from __future__ import annotations

import pytest

from kvflow.engine.flags import Flag, flag_value, merge_flags

OURS: list[Flag] = [("--port", "30000"), ("--enable-metrics", None), ("--tp-size", "1")]


@pytest.mark.parametrize(
    ("users", "expected"),
    [
        ([], ["--port", "30000", "--enable-metrics", "--tp-size", "1"]),
        (["--port", "1"], ["--enable-metrics", "--tp-size", "1", "--port", "1"]),
        (["--port=1"], ["--enable-metrics", "--tp-size", "1", "--port=1"]),
        (["--tp", "2"], ["--port", "30000", "--enable-metrics", "--tp", "2"]),
        (["--tp_size=2"], ["--port", "30000", "--enable-metrics", "--tp_size=2"]),
        (["--enable-metrics"], ["--port", "30000", "--tp-size", "1", "--enable-metrics"]),
        (
            ["--port-base", "7"],
            ["--port", "30000", "--enable-metrics", "--tp-size", "1", "--port-base", "7"],
        ),
    ],
)
def test_users_flags_replace_ours(users: list[str], expected: list[str]) -> None:
    assert merge_flags(OURS, users) == expected


def test_a_value_that_looks_like_our_flag_s_is_left_alone() -> None:
    assert merge_flags([("--log-level", "info")], ["--served-model-name", "log-level"]) == [
        *("--log-level", "info"),
        *("--served-model-name", "log-level"),
    ]


@pytest.mark.parametrize(
    ("arguments", "flag", "value"),
    [
        (["--port", "1"], "--port", "1"),
        (["--port=1"], "--port", "1"),
        (["--port", "1", "--port", "2"], "--port", "2"),
        (["--model", "x"], "--model-path", "x"),
        (["--tensor-parallel-size=4"], "--tp-size", "4"),
        (["--port-base", "7"], "--port", None),
        (["--port"], "--port", None),
        ([], "--port", None),
    ],
)
def test_flag_value(arguments: list[str], flag: str, value: str | None) -> None:
    assert flag_value(arguments, flag) == value
