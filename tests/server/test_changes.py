"""The log of changes against a model: what each reader knows and what it has yet to be told."""

from __future__ import annotations

from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    multiple,
    rule,
)

from kvflow.server.changes import ChangeLog
from kvflow.server.store import StreamKey

KEYS = st.sampled_from([("c", f"w{i}") for i in range(4)])


class Reader:
    """What an engine makes of what it is told: the workflows it takes to be live."""

    def __init__(self) -> None:
        self.position = 0
        self.live: dict[StreamKey, int] = {}

    def take(self, log: ChangeLog, states: dict[StreamKey, int], most: int | None) -> None:
        changes = list(log.since(self.position))
        for one in changes[:most]:
            if one.closed:
                self.live.pop(one.key, None)
            else:
                self.live[one.key] = states[one.key]
            self.position = one.number
        if most is None or most >= len(changes):
            self.position = log.last


class Changes(RuleBasedStateMachine):
    readers = Bundle("readers")

    @initialize()
    def begin(self) -> None:
        self.present: set[Reader] = set()
        self.log = ChangeLog(lambda: (reader.position for reader in self.present))
        self.states: dict[StreamKey, int] = {}
        self.count = 0

    @rule(key=KEYS)
    def change(self, key: StreamKey) -> None:
        self.count += 1
        self.states[key] = self.count
        self.log.changed(key)

    @rule(key=KEYS)
    def close(self, key: StreamKey) -> None:
        self.states.pop(key, None)
        self.log.closed(key)

    @rule(key=KEYS, times=st.sampled_from([10, 1_500]))
    def come_and_go(self, key: StreamKey, times: int) -> None:
        for _ in range(times):
            self.change(key)
            self.close(key)

    @rule(target=readers)
    def connect(self) -> Reader:
        reader = Reader()
        self.present.add(reader)
        return reader

    @rule(target=readers, reader=consumes(readers), gone=st.booleans())
    def leave(self, reader: Reader, gone: bool) -> object:
        if not gone:
            return reader
        self.present.discard(reader)
        return multiple()

    @rule(reader=readers, most=st.sampled_from([1, 2, None]))
    def take(self, reader: Reader, most: int | None) -> None:
        reader.take(self.log, self.states, most)

    @invariant()
    def whoever_has_taken_all_knows_what_lives(self) -> None:
        for reader in self.present:
            pending = list(self.log.since(reader.position))
            workflows, counted = (
                len({one.key for one in pending}),
                self.log.count_since(reader.position),
            )
            assert counted == workflows or counted > max(workflows, 1000)
            caught_up = Reader()
            caught_up.position, caught_up.live = reader.position, dict(reader.live)
            caught_up.take(self.log, self.states, None)
            assert caught_up.live == self.states
            assert list(self.log.since(caught_up.position)) == []

    @invariant()
    def what_nobody_needs_is_forgotten(self) -> None:
        # Twice what is live or closed since somebody heard of it, and some slack.
        assert len(self.log) <= 2 * 4 * (1 + len(self.present)) + 2 * 1024


TestChanges = Changes.TestCase


def test_one_who_has_never_heard_of_a_workflow_is_not_told_that_it_was_closed() -> None:
    log = ChangeLog(lambda: (0, 1))
    log.changed(("c", "a"))
    log.changed(("c", "b"))
    log.closed(("c", "b"))
    log.closed(("c", "unknown"))

    assert [(one.key[1], one.closed) for one in log.since(1)] == []
    assert [(one.key[1], one.closed) for one in log.since(0)] == [("a", False)]
    assert [(one.key[1], one.closed) for one in log.since(2)] == [("b", True)]


def test_closed_and_there_again_comes_as_both_in_this_order() -> None:
    log = ChangeLog(lambda: (1,))
    log.changed(("c", "a"))
    log.closed(("c", "a"))
    log.changed(("c", "a"))

    assert [one.closed for one in log.since(1)] == [True, False]
    assert log.count_since(1) == 1
