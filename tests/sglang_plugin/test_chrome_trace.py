"""The trace as a file: its format, its tracks, and asking for it."""

from __future__ import annotations

import json
import logging
from collections import defaultdict
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvflow.sglang_plugin.chrome_trace import (
    RETRY_S,
    TraceFiles,
    TraceOnDemand,
    chrome_trace,
    pack_lanes,
)
from kvflow.sglang_plugin.trace import ClockAnchor, TraceRecorder

SECOND = 1_000_000
FOUND: Any = {"prompt_tokens": 100, "device_tokens": 20, "host_tokens": 60}


def recorder_of(*requests: tuple[float, float]) -> TraceRecorder:
    recorder = TraceRecorder(anchor=ClockAnchor(100, 1_000 * 10**9))
    for number, (start_s, end_s) in enumerate(requests):
        rid = f"r{number}"
        recorder.queued(rid, start_s, ("c", "w"), f"agent{number}")
        recorder.admitted(rid, start_s, **FOUND, overlapped=True)
        recorder.first_token(rid, end_s)
        recorder.finished(rid, end_s, 1)
    return recorder


def track_names(trace: dict[str, Any]) -> dict[int, str]:
    return {
        event["tid"]: event["args"]["name"]
        for event in trace["traceEvents"]
        if event["name"] == "thread_name"
    }


def slices(trace: dict[str, Any], category: str) -> list[dict[str, Any]]:
    return [
        event for event in trace["traceEvents"] if event["ph"] == "X" and event["cat"] == category
    ]


def check_format(trace: dict[str, Any]) -> None:
    """What ui.perfetto.dev needs; slices on a track lie apart or within each other."""
    trace = json.loads(json.dumps(trace, allow_nan=False))
    tracks: dict[tuple[int, int], list[tuple[int, int]]] = defaultdict(list)
    for event in trace["traceEvents"]:
        assert event["ph"] in {"X", "i", "M"}
        assert isinstance(event["pid"], int)
        assert isinstance(event["tid"], int)
        assert event["name"]
        if event["ph"] == "X":
            assert isinstance(event["ts"], int)
            assert event["dur"] >= 0
            tracks[event["pid"], event["tid"]].append((event["ts"], event["dur"]))
        elif event["ph"] == "i":
            assert event["s"] == "t"
    names = track_names(trace)
    for (_pid, tid), spans in tracks.items():
        assert tid in names
        enclosing: list[int] = []
        for start, length in sorted(spans, key=lambda span: (span[0], -span[1])):
            while enclosing and enclosing[-1] <= start:
                enclosing.pop()
            assert not enclosing or start + length <= enclosing[-1]
            enclosing.append(start + length)


def spans(shortest: int) -> st.SearchStrategy[list[tuple[int, int]]]:
    span = st.tuples(st.integers(0, 30), st.integers(shortest, 10))
    return st.lists(span.map(lambda drawn: (drawn[0], drawn[0] + drawn[1])))


@given(spans(shortest=0))
def test_lanes_never_overlap(drawn: list[tuple[int, int]]) -> None:
    by_lane = defaultdict(list)
    for span, lane in zip(drawn, pack_lanes(drawn), strict=True):
        by_lane[lane].append(span)
    for on_lane in by_lane.values():
        for (_, end), (start, _) in pairwise(sorted(on_lane)):
            assert end <= start


@given(spans(shortest=1))
def test_lanes_are_as_few_as_can_be(drawn: list[tuple[int, int]]) -> None:
    most_at_once = max(sum(start <= t < end for start, end in drawn) for t in range(41))
    assert set(pack_lanes(drawn)) == set(range(most_at_once))


@given(
    st.lists(
        st.tuples(st.sampled_from(["load", "prefetch", "fetch"]), st.integers(0, 9)), max_size=9
    ),
    spans(shortest=0),
)
def test_any_recording_is_a_valid_trace(
    copies: list[tuple[Any, int]], requests: list[tuple[int, int]]
) -> None:
    recorder = recorder_of(*((100 + start / 3, 100 + end / 3) for start, end in requests))
    for kind, length in copies:
        recorder.copy(kind, 100, 100 + length / 3, 1, "")
    check_format(chrome_trace(recorder))


def test_a_request_and_its_phases() -> None:
    trace = chrome_trace(recorder_of((101, 103.5)), engine_id="e1")
    check_format(trace)
    (request,) = slices(trace, "request")
    assert request["name"] == "agent0"
    assert request["ts"] == 1_001 * SECOND
    assert request["dur"] == 2.5 * SECOND
    assert request["args"] == {
        "request_id": "r0",
        "client_id": "c",
        "workflow_id": "w",
        "agent_id": "agent0",
        **FOUND,
        "overlapped": True,
        "output_tokens": 1,
        "aborted": False,
        "wait_ms": 0,
        "queue_ms": 0,
    }
    (prefill,) = slices(trace, "phase")
    assert (prefill["name"], prefill["ts"]) == ("prefill", 1_001 * SECOND)
    (first,) = [event for event in trace["traceEvents"] if event["ph"] == "i"]
    assert (first["name"], first["ts"]) == ("first token", 1_003.5 * SECOND)
    assert prefill["tid"] == first["tid"] == request["tid"]
    assert trace["traceEvents"][0]["args"] == {"name": "engine e1"}


def test_tracks() -> None:
    recorder = recorder_of((101, 103), (102, 104), (103, 105))
    recorder.copy("load", 101, 102, 5, "r0")
    recorder.copy("prefetch", 102, 103, 5, "coder")
    recorder.copy("fetch", 101, 103, 5, "coder")
    recorder.copy("fetch", 102, 103, 5, "writer")
    trace = chrome_trace(recorder)
    check_format(trace)
    names = track_names(trace)
    assert list(names.values()) == [
        "load link",
        "fetch link",
        "fetch link 2",
        "requests",
        "requests 2",
    ]
    on = {each["name"]: names[each["tid"]] for each in trace["traceEvents"] if each["ph"] == "X"}
    assert on["load r0"] == on["prefetch coder"] == "load link"
    assert on["fetch writer"] == "fetch link 2"
    assert on["agent0"] == on["agent2"] == "requests"
    assert on["agent1"] == "requests 2"


def test_engines_are_different_processes() -> None:
    one, other = (chrome_trace(recorder_of((0, 1)), engine_id=name) for name in ("a", "b"))
    assert {event["pid"] for event in one["traceEvents"]}.isdisjoint(
        event["pid"] for event in other["traceEvents"]
    )


def test_since() -> None:
    recorder = recorder_of((100, 110), (100, 120))
    recorder.copy("load", 100, 110, 1, "early")
    recorder.copy("load", 100, 120, 1, "late")
    trace = chrome_trace(recorder, since_s=115)
    assert [each["name"] for each in slices(trace, "request")] == ["agent1"]
    assert [each["name"] for each in slices(trace, "load")] == ["load late"]


class TestOnDemand:
    def test_nobody_asked(self, tmp_path: Path) -> None:
        on_demand = TraceOnDemand(tmp_path / "new", "e1", recorder_of())
        assert not on_demand.poll(0)
        assert list(tmp_path.rglob("*")) == [tmp_path / "new"]

    def test_asked_twice(self, tmp_path: Path) -> None:
        recorder = recorder_of((101, 102))
        recorder.queued("still", 102)
        on_demand = TraceOnDemand(tmp_path, "e1", recorder)
        for now_s in (103, 104):
            (tmp_path / "e1.request").touch()
            assert on_demand.poll(now_s)
            assert [path.name for path in tmp_path.iterdir()] == ["e1.trace.json"]
            trace = json.loads((tmp_path / "e1.trace.json").read_text())
            assert slices(trace, "request")[1]["dur"] == (now_s - 102) * SECOND
            assert not on_demand.poll(now_s)

    def test_only_who_is_asked_answers(self, tmp_path: Path) -> None:
        (tmp_path / "e2.request").touch()
        assert not TraceOnDemand(tmp_path, "e1", recorder_of()).poll(0)

    def test_an_id_cannot_leave_the_folder(self, tmp_path: Path) -> None:
        files = TraceFiles.of(tmp_path, "../a b/c")
        assert files.request.parent == files.trace.parent == tmp_path
        assert files.request.resolve().parent == tmp_path.resolve()
        on_demand = TraceOnDemand(tmp_path, "../a b/c", recorder_of())
        files.request.touch()
        assert on_demand.poll(0)
        assert files.trace.exists()

    def test_an_error_stays_here_and_is_not_repeated_at_once(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        on_demand = TraceOnDemand(tmp_path, "e1", recorder_of())
        on_demand.files.trace.mkdir()
        on_demand.files.request.touch()
        assert not on_demand.poll(10)
        assert "the engine goes on" in caplog.text
        assert [path.name for path in tmp_path.iterdir()] == ["e1.trace.json"]
        on_demand.files.trace.rmdir()
        on_demand.files.request.touch()
        assert not on_demand.poll(10 + RETRY_S - 1)
        assert on_demand.poll(10 + RETRY_S)

    def test_a_folder_that_cannot_be(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        (tmp_path / "file").touch()
        with caplog.at_level(logging.WARNING):
            on_demand = TraceOnDemand(tmp_path / "file" / "below", "e1", recorder_of())
        assert "no traces" in caplog.text
        assert not on_demand.poll(0)
