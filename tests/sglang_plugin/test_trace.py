"""Timelines of requests, and what they stood still for."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvflow.sglang_plugin.trace import (
    MAX_SKIPS,
    ClockAnchor,
    RequestTimeline,
    TraceRecorder,
    stalls,
)

FOUND: Any = {"prompt_tokens": 100, "device_tokens": 20, "host_tokens": 60}


@pytest.fixture
def recorder() -> TraceRecorder:
    return TraceRecorder(4)


def only(recorder: TraceRecorder, now_s: float | None = None) -> RequestTimeline:
    (timeline,) = recorder.requests(now_s)
    return timeline


def run_through(recorder: TraceRecorder, rid: str, start_s: float = 0) -> None:
    recorder.queued(rid, start_s)
    recorder.admitted(rid, start_s + 1, **FOUND, overlapped=False)
    recorder.first_token(rid, start_s + 2)
    recorder.finished(rid, start_s + 3, 7)


def test_a_whole_life(recorder: TraceRecorder) -> None:
    recorder.queued("r", 10, ("c", "w"), "coder")
    recorder.skipped("r", 12)
    recorder.skipped("r", 13)
    recorder.released("r", 14)
    recorder.admitted("r", 15, **FOUND, overlapped=True)
    recorder.first_token("r", 18)
    recorder.finished("r", 20, 7)
    timeline = only(recorder)
    assert timeline == RequestTimeline(
        request_id="r",
        workflow_id="w",
        agent_id="coder",
        client_id="c",
        start_s=10,
        end_s=20,
        events=(
            ("queued", 10, 12),
            ("skipped", 12, 14),
            ("queued", 14, 15),
            ("prefill", 15, 18),
            ("decode", 18, 20),
        ),
        first_token_s=18,
        attributes={**FOUND, "overlapped": True, "output_tokens": 7, "aborted": False},
    )
    assert stalls(timeline) == {"wait": 2, "queue": 3}


@pytest.mark.parametrize("end", ["admitted", "finished"])
def test_a_skip_that_is_not_released_lasts_until_the_next_report(
    recorder: TraceRecorder, end: str
) -> None:
    recorder.queued("r", 0)
    recorder.skipped("r", 1)
    recorder.skipped("r", 2)
    if end == "admitted":
        recorder.admitted("r", 4, **FOUND, overlapped=True)
    recorder.finished("r", 4, 0, aborted=True)
    timeline = only(recorder)
    assert timeline.events == (("queued", 0, 1), ("skipped", 1, 4))
    assert timeline.attributes["aborted"] is True
    assert ("prompt_tokens" in timeline.attributes) == (end == "admitted")


def test_put_back_into_the_queue(recorder: TraceRecorder) -> None:
    recorder.queued("r", 0, ("c", "w"))
    recorder.skipped("r", 1)
    recorder.queued("r", 3)
    recorder.finished("r", 5, 0)
    timeline = only(recorder)
    assert timeline.events == (("queued", 0, 1), ("skipped", 1, 3), ("queued", 3, 5))
    assert timeline.workflow_id == "w"


@pytest.mark.parametrize(
    ("overlapped", "load", "expected"),
    [
        (False, (2, 3), (("waiting_for_load", 1, 3), ("prefill", 3, 5))),
        (True, (2, 3), (("prefill", 1, 5), ("loading", 2, 3))),
        (False, (0, 0.5), (("prefill", 1, 5),)),
        (True, (0, 0.5), (("prefill", 1, 5),)),
        (True, (0, 2), (("prefill", 1, 5), ("loading", 1, 2))),
        (False, (2, 9), (("waiting_for_load", 1, 5),)),
        (True, (2, 9), (("prefill", 1, 5), ("loading", 2, 5))),
    ],
)
def test_its_own_load(
    recorder: TraceRecorder,
    overlapped: bool,
    load: tuple[float, float],
    expected: tuple[tuple[str, float, float], ...],
) -> None:
    recorder.queued("r", 1)
    recorder.admitted("r", 1, **FOUND, overlapped=overlapped)
    recorder.copy("load", *load, 60, "r")
    recorder.copy("prefetch", 1, 4, 60, "r")
    recorder.first_token("r", 5)
    recorder.finished("r", 6, 1)
    timeline = only(recorder)
    assert timeline.events == (*expected, ("decode", 5, 6))
    waited = [end - start for phase, start, end in expected if phase == "waiting_for_load"]
    assert stalls(timeline) == {"wait": sum(waited), "queue": 0}


def test_several_loads_count_from_the_first_to_the_last(recorder: TraceRecorder) -> None:
    recorder.queued("r", 0)
    recorder.admitted("r", 0, **FOUND, overlapped=False)
    recorder.copy("load", 2, 3, 30, "r")
    recorder.copy("load", 1, 2, 30, "r")
    recorder.finished("r", 5, 0)
    assert only(recorder).events == (("waiting_for_load", 0, 3), ("prefill", 3, 5))


def test_only_the_first_batch_and_token_count(recorder: TraceRecorder) -> None:
    recorder.queued("r", 0)
    recorder.first_token("r", 0.5)
    recorder.admitted("r", 1, **FOUND, overlapped=True)
    recorder.admitted("r", 2, prompt_tokens=1, device_tokens=1, host_tokens=1, overlapped=False)
    recorder.first_token("r", 3)
    recorder.skipped("r", 4)
    recorder.first_token("r", 5)
    recorder.finished("r", 6, 9)
    timeline = only(recorder)
    assert timeline.events == (("queued", 0, 1), ("prefill", 1, 3), ("decode", 3, 6))
    assert timeline.attributes["prompt_tokens"] == 100


def test_an_open_request_goes_on(recorder: TraceRecorder) -> None:
    recorder.queued("r", 0)
    recorder.skipped("r", 1)
    recorder.skipped("r", 3)
    assert only(recorder).events == (("queued", 0, 1), ("skipped", 1, 3))
    timeline = only(recorder, now_s=7)
    assert timeline.events == (("queued", 0, 1), ("skipped", 1, 7))
    assert timeline.open
    assert timeline.end_s == 7
    recorder.finished("r", 8, 0)
    assert not only(recorder, now_s=9).open
    assert only(recorder, now_s=9).end_s == 8


def test_what_is_not_open_is_ignored(recorder: TraceRecorder) -> None:
    run_through(recorder, "r")
    before = recorder.requests()
    for rid in ("r", "never"):
        recorder.skipped(rid, 9)
        recorder.released(rid, 9)
        recorder.admitted(rid, 9, **FOUND, overlapped=True)
        recorder.first_token(rid, 9)
        recorder.copy("load", 1, 9, 1, rid)
        recorder.finished(rid, 9, 1)
    assert recorder.requests() == before


class TestBounds:
    def test_the_latest_finished_are_kept(self, recorder: TraceRecorder) -> None:
        for number in range(10):
            run_through(recorder, f"r{number}", start_s=number * 3)
        assert [each.request_id for each in recorder.requests()] == ["r6", "r7", "r8", "r9"]

    def test_the_oldest_open_one_is_dropped(self, recorder: TraceRecorder) -> None:
        for number in range(10):
            recorder.queued(f"r{number}", number)
        assert [each.request_id for each in recorder.requests()] == ["r6", "r7", "r8", "r9"]
        recorder.finished("r0", 11, 1)
        assert all(each.open for each in recorder.requests())

    def test_copies(self, recorder: TraceRecorder) -> None:
        for number in range(30):
            recorder.copy("fetch", number, number + 1, number, "")
        assert [copy.tokens for copy in recorder.copies()] == list(range(14, 30))

    def test_skips_of_one_request(self, recorder: TraceRecorder) -> None:
        recorder.queued("r", 0)
        for step in range(10 * MAX_SKIPS):
            recorder.skipped("r", 2 * step + 1)
            recorder.released("r", 2 * step + 2)
        recorder.finished("r", 20 * MAX_SKIPS, 0)
        skips = [each for each in only(recorder).events if each.phase == "skipped"]
        assert len(skips) == MAX_SKIPS
        assert skips[-1].end_s == 20 * MAX_SKIPS


def test_who_listens_gets_what_is_kept() -> None:
    heard: list[RequestTimeline] = []
    recorder = TraceRecorder(4, on_finished=heard.append)
    run_through(recorder, "a")
    recorder.queued("b", 4)
    assert heard == recorder.requests()[:1]


def test_anchor() -> None:
    anchor = ClockAnchor(monotonic_s=100.5, unix_ns=1_700_000_000_000_000_000)
    assert anchor.unix_time_ns(102.75) == 1_700_000_002_250_000_000
    assert anchor.unix_time_ns(100.25) == 1_699_999_999_750_000_000


REPORTS = st.lists(
    st.tuples(
        st.sampled_from(["queued", "skipped", "released", "admitted", "first", "load", "finish"]),
        st.integers(0, 3),
        st.booleans(),
    ),
    max_size=40,
)


@given(REPORTS)
def test_phases_follow_each_other_without_a_gap(reports: list[tuple[str, int, bool]]) -> None:
    recorder = TraceRecorder()
    now_s = 0
    for report, wait_s, overlapped in reports:
        now_s += wait_s
        match report:
            case "queued":
                recorder.queued("r", now_s)
            case "skipped":
                recorder.skipped("r", now_s)
            case "released":
                recorder.released("r", now_s)
            case "admitted":
                recorder.admitted("r", now_s, **FOUND, overlapped=overlapped)
            case "first":
                recorder.first_token("r", now_s)
            case "load":
                recorder.copy("load", now_s - 2, now_s, 1, "r")
            case "finish":
                recorder.finished("r", now_s, 1)
    for timeline in recorder.requests():
        at_s = timeline.start_s
        for phase, start_s, end_s in timeline.events:
            assert end_s > start_s
            if phase == "loading":
                assert any(
                    outer.phase == "prefill" and outer.start_s <= start_s and end_s <= outer.end_s
                    for outer in timeline.events
                )
            else:
                assert start_s == at_s
                at_s = end_s
        assert at_s == timeline.end_s
