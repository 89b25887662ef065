"""Messages that wait for what they build on, and what was seen before."""

from __future__ import annotations

from kvflow.server.mqtt.duplicates import Remembered, redelivery_key
from kvflow.server.mqtt.early import EarlyMessages

W, V = ("c", "w"), ("c", "v")


def test_given_up_after_their_time_only() -> None:
    early: EarlyMessages[str] = EarlyMessages(wait_s=2.0, max_held=10)
    early.hold(W, "first", now_s=0.0)
    early.hold(V, "second", now_s=1.0)
    assert early.overdue(1.9) == []
    assert early.overdue(2.0) == ["first"]
    assert early.overdue(2.0) == []
    assert early.take(V) == [("second", 3.0)]
    assert len(early) == 0


def test_put_back_keeps_order_and_deadlines() -> None:
    early: EarlyMessages[str] = EarlyMessages(wait_s=2.0, max_held=10)
    early.hold(W, "a", now_s=0.0)
    early.hold(W, "b", now_s=1.0)
    taken = early.take(W)
    early.hold(W, "c", now_s=1.5)
    early.put_back(W, taken)
    assert [message for message, _ in early.take(W)] == ["a", "b", "c"]
    early.put_back(W, taken)
    assert early.overdue(2.5) == ["a"]
    assert len(early) == 1


def test_of_too_many_the_oldest_go() -> None:
    early: EarlyMessages[int] = EarlyMessages(wait_s=100.0, max_held=3)
    for number in range(5):
        early.hold(("c", f"w{number}"), number, now_s=float(number))
    assert early.overdue(5.0) == [0, 1]
    assert len(early) == 3


def test_only_the_last_keys_are_remembered() -> None:
    seen = Remembered(max_remembered=2)
    for key in ("a", "b", "a", "c"):
        seen.add(key)
    assert ("a" in seen, "b" in seen, "c" in seen) == (True, False, True)


def test_a_redelivery_is_known_by_number_topic_and_payload() -> None:
    same = redelivery_key(7, "t", b"x")
    assert same == redelivery_key(7, "t", b"x")
    for other in ((8, "t", b"x"), (7, "u", b"x"), (7, "t", b"y"), (7, "", b"t\0x")):
        assert same != redelivery_key(*other)
