"""Making, rotating and revoking keys."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from kvflow.errors import InvalidInputError
from kvflow.server.keys import (
    ClientLimits,
    ClientRecord,
    KeyFile,
    configure,
    create_key,
    revoke,
    rotate,
)
from kvflow.server.keys.tokens import digest, key_id_of, make_key

NOW = datetime(2026, 3, 1, tzinfo=UTC)
DAY = timedelta(days=1)
EMPTY = KeyFile(salt_secret="0" * 64)


def test_a_key_is_kept_as_its_digest_only() -> None:
    content, new = create_key(EMPTY, "team-a", "client", NOW)

    (record,) = content.keys
    assert record.sha256 == digest(new.key)
    assert record.key_id == key_id_of(new.key)
    assert new.key not in content.model_dump_json()
    assert new.key.removeprefix(f"kvf_{record.key_id}_") not in content.model_dump_json()
    assert new.key not in repr(new)
    assert "team-a" in content.clients


def test_keys_differ_and_are_long() -> None:
    keys = {make_key()[0] for _ in range(100)}

    assert len(keys) == 100
    assert {len(key) for key in keys} == {len("kvf_") + 8 + 1 + 43}


def test_two_valid_keys_and_no_third() -> None:
    content, _ = create_key(EMPTY, "team-a", "client", NOW)
    content, _ = create_key(content, "team-a", "client", NOW)

    with pytest.raises(InvalidInputError, match=r"2 valid keys.*revoke") as refused:
        create_key(content, "team-a", "client", NOW)

    assert refused.value.field == ("name",)
    create_key(content, "team-b", "client", NOW)


def test_ended_keys_make_room() -> None:
    content, first = create_key(EMPTY, "team-a", "client", NOW, expires_at=NOW + DAY)
    content, second = create_key(content, "team-a", "client", NOW)
    content, ended = revoke(content, second.record.key_id, NOW)
    assert [key.key_id for key in ended] == [second.record.key_id]

    content, _ = create_key(content, "team-a", "client", NOW)
    content, _ = create_key(content, "team-a", "client", NOW + DAY)

    states = {key.key_id: key.state(NOW + DAY) for key in content.keys}
    assert states[first.record.key_id] == "expired"
    assert states[second.record.key_id] == "revoked"
    assert sorted(states.values()) == ["expired", "revoked", "valid", "valid"]


def test_a_name_has_one_scope() -> None:
    content, _ = create_key(EMPTY, "ops", "admin", NOW)
    content, _ = create_key(content, "team-a", "client", NOW)

    with pytest.raises(InvalidInputError, match="scope admin"):
        create_key(content, "ops", "client", NOW)
    with pytest.raises(InvalidInputError, match="scope client"):
        create_key(content, "team-a", "engine", NOW)


def test_rotation_gives_the_old_key_a_last_day() -> None:
    content, old = create_key(EMPTY, "team-a", "client", NOW)
    content, other = create_key(content, "team-b", "client", NOW)
    content, new = rotate(content, "team-a", NOW, grace=DAY)

    def valid(at: datetime) -> set[str]:
        return {key.key_id for key in content.keys if key.state(at) == "valid"}

    ids = [one.record.key_id for one in (old, new, other)]
    assert valid(NOW) == set(ids)
    assert valid(NOW + DAY) == set(ids[1:])
    assert new.key != old.key


def test_rotation_never_lengthens_a_life() -> None:
    content, _ = create_key(EMPTY, "team-a", "client", NOW, expires_at=NOW + DAY)

    content, _ = rotate(content, "team-a", NOW, grace=7 * DAY)

    assert content.keys[0].expires_at == NOW + DAY


def test_rotation_keeps_the_scope_and_needs_a_key() -> None:
    content, _ = create_key(EMPTY, "ops", "admin", NOW)

    _, new = rotate(content, "ops", NOW, grace=DAY)

    assert new.record.scope == "admin"
    with pytest.raises(InvalidInputError, match="names with keys: ops"):
        rotate(content, "nobody", NOW, grace=DAY)


def test_revoking_a_name_ends_all_its_keys() -> None:
    content, _ = create_key(EMPTY, "team-a", "client", NOW)
    content, _ = create_key(content, "team-a", "client", NOW)
    content, _ = create_key(content, "team-b", "client", NOW)

    content, ended = revoke(content, "team-a", NOW)

    assert len(ended) == 2
    assert [key.state(NOW) for key in content.keys] == ["revoked", "revoked", "valid"]
    assert revoke(content, "team-a", NOW)[1] == []
    with pytest.raises(InvalidInputError, match="no key of the name or key_id 'x'"):
        revoke(content, "x", NOW)


def test_clients_can_be_configured_others_not() -> None:
    content, _ = create_key(EMPTY, "team-a", "client", NOW)
    record = ClientRecord(isolate_cache=True, limits=ClientLimits(max_workflows=3))

    assert configure(content, "team-a", record).clients["team-a"] == record
    with pytest.raises(InvalidInputError, match="no client 'team-b'"):
        configure(content, "team-b", record)
