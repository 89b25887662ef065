"""Who a key says one is, and what a running service makes of changes of the file."""

from __future__ import annotations

import hmac
import logging
from datetime import timedelta

import pytest

from kvflow.errors import EnvironmentProblemError
from kvflow.server.identity import Identity, cache_salt_for
from kvflow.server.keys import (
    Authenticated,
    KeyRing,
    Refusal,
    change_key_file,
    create_key,
    revoke,
    rotate,
)
from tests.server.conftest import FakeClock
from tests.server.keys.conftest import Calendar
from tests.server.keys.made import MadeKeys


@pytest.fixture
def ring(made: MadeKeys, calendar: Calendar, clock: FakeClock) -> KeyRing:
    return KeyRing("admin-of-old", made.path, now=calendar, clock=clock)


def who(ring: KeyRing, key: str | None) -> Identity | str:
    found = ring.authenticate(key)
    return found.identity if isinstance(found, Authenticated) else found.reason


def test_each_key_is_who_it_is(ring: KeyRing, made: MadeKeys) -> None:
    assert who(ring, made.keys["ops"]) == Identity(None, "admin")
    assert who(ring, made.keys["team-a"]) == Identity("team-a", "client")
    assert who(ring, made.keys["gpu-1"]) == Identity(None, "engine")
    assert who(ring, "admin-of-old") == Identity(None, "admin")
    assert ring.guards


def test_what_is_no_key(ring: KeyRing, made: MadeKeys) -> None:
    key = made.keys["team-a"]
    for wrong in (key[:-1] + ("A" if key[-1] != "A" else "B"), key[:-1], key + "x", key.upper()):
        assert who(ring, wrong) == "unknown"
    other_id = made.keys["team-b"][:13] + key[13:]
    assert who(ring, other_id) == "unknown"
    assert who(ring, None) == who(ring, "") == "missing"
    assert who(ring, "admin-of-old ") == "unknown"


def test_only_the_file(ring: KeyRing, made: MadeKeys) -> None:
    refused = ring.authenticate("admin-of-old", only_file=True)

    assert refused == Refusal("unknown")
    assert isinstance(ring.authenticate(made.keys["ops"], only_file=True), Authenticated)


def test_no_keys_at_all() -> None:
    assert not KeyRing(None, None).guards


def test_every_comparison_is_of_digests_and_takes_the_same_time(
    ring: KeyRing, made: MadeKeys, monkeypatch: pytest.MonkeyPatch
) -> None:
    compared: list[tuple[str, str]] = []
    real = hmac.compare_digest

    def recorded(one: str, other: str) -> bool:
        compared.append((one, other))
        return real(one, other)

    monkeypatch.setattr("kvflow.server.keys.tokens.hmac.compare_digest", recorded)
    unknown_id = "kvf_aaaaaaaa_" + made.keys["ops"][13:]

    # A wrong secret and an unknown key_id go the same way: one comparison for the file, one for
    # the key of the settings.
    for wrong in (made.keys["ops"][:-1] + "!", made.keys["ops"][:-2] + "__", unknown_id, "x"):
        compared.clear()
        assert who(ring, wrong) == "unknown"
        assert len(compared) == 2
        assert all(len(one) == len(other) == 64 for one, other in compared)


def test_a_key_expires_at_its_time(made: MadeKeys, calendar: Calendar, clock: FakeClock) -> None:
    ends = calendar.now + timedelta(hours=1)
    new = change_key_file(
        made.path,
        lambda content: create_key(content, "team-a", "client", calendar.now, expires_at=ends),
    )
    ring = KeyRing(None, made.path, now=calendar, clock=clock)
    calendar.pass_by(seconds=3599)
    assert who(ring, new.key) == Identity("team-a", "client")

    calendar.pass_by(seconds=1)

    assert ring.authenticate(new.key) == Refusal("expired", new.record.key_id)
    assert who(ring, made.keys["team-a"]) == Identity("team-a", "client")


def test_rotation_needs_no_restart(
    ring: KeyRing, made: MadeKeys, calendar: Calendar, clock: FakeClock
) -> None:
    new = change_key_file(
        made.path,
        lambda content: rotate(content, "team-a", calendar.now, grace=timedelta(hours=1)),
    )
    assert who(ring, new.key) == "unknown"  # looked at a moment ago

    clock.now_s += 1
    assert who(ring, new.key) == who(ring, made.keys["team-a"]) == Identity("team-a", "client")

    calendar.pass_by(hours=1)
    assert who(ring, made.keys["team-a"]) == "expired"
    assert who(ring, new.key) == Identity("team-a", "client")


def test_revocation_needs_no_restart(
    ring: KeyRing, made: MadeKeys, calendar: Calendar, clock: FakeClock
) -> None:
    found = ring.authenticate(made.keys["team-a"])
    assert isinstance(found, Authenticated)
    assert ring.still_valid(found)
    change_key_file(made.path, lambda content: revoke(content, "team-a", calendar.now))

    clock.now_s += 1

    assert who(ring, made.keys["team-a"]) == "revoked"
    assert not ring.still_valid(found)


def test_a_broken_file_leaves_the_keys_as_they_were(
    ring: KeyRing, made: MadeKeys, clock: FakeClock, caplog: pytest.LogCaptureFixture
) -> None:
    good = made.path.read_text()
    for broken in ("{", None):
        caplog.clear()
        made.path.write_text(broken) if broken else made.path.unlink()
        for _ in range(3):
            clock.now_s += 1
            assert who(ring, made.keys["team-a"]) == Identity("team-a", "client")
        (line,) = [one for one in caplog.records if one.levelno == logging.ERROR]
        assert "the keys as they were before hold on" in line.getMessage()
        assert str(made.path) in line.getMessage()

    made.path.write_text(good.replace("team-a", "team-c"))
    made.path.chmod(0o600)
    clock.now_s += 1

    assert who(ring, made.keys["team-a"]) == Identity("team-c", "client")


def test_a_broken_file_at_the_start_is_an_error(made: MadeKeys) -> None:
    made.path.write_text("{")

    with pytest.raises(EnvironmentProblemError, match="broken"):
        KeyRing(None, made.path)


def test_salts_are_of_the_client_secret_and_apart(
    ring: KeyRing, made: MadeKeys, calendar: Calendar, clock: FakeClock
) -> None:
    def salt(name: str) -> str | None:
        found = ring.authenticate(made.keys[name])
        assert isinstance(found, Authenticated)
        assert (found.identity.cache_salt or "?") not in repr(found)
        return cache_salt_for(found.identity)

    assert salt("team-a") is salt("team-b") is salt("ops") is None
    made.isolate("team-a")
    made.isolate("team-b")
    clock.now_s += 1

    assert len({salt("team-a"), salt("team-b"), None}) == 3
    assert ring.acting_for("team-a").cache_salt == salt("team-a")
    new = change_key_file(
        made.path, lambda content: create_key(content, "team-a", "client", calendar.now)
    )
    clock.now_s += 1
    found = ring.authenticate(new.key)
    assert isinstance(found, Authenticated)
    assert found.identity.cache_salt == salt("team-a")  # what it has cached outlives a rotation


def test_administrators_act_for_clients_that_have_keys(ring: KeyRing) -> None:
    assert ring.acting_for("team-a").namespace == "team-a"
    assert ring.acting_for("team-a").scope == "admin"
    assert ring.acting_for("stranger") == Identity(None, "admin")
