"""``kvflow keys``."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from kvflow.cli.main import main
from kvflow.server.keys import Authenticated, KeyRing, read_key_file


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "keys.json"
    monkeypatch.setenv("KVFLOW_KEYS_FILE", str(path))
    return path


def keys(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert main(["keys", *words]) == 0, capsys.readouterr().err
    return capsys.readouterr().out.strip()


def test_a_key_is_printed_once_and_works(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    key = keys(capsys, "create", "team-a", "--isolate-cache", "--max-workflows", "7")

    found = KeyRing(None, path).authenticate(key)
    assert isinstance(found, Authenticated)
    assert (found.identity.client_id, found.identity.scope) == ("team-a", "client")
    assert found.identity.cache_salt is not None
    assert KeyRing(None, path).limits("team-a").max_workflows == 7
    assert key not in keys(capsys, "list") + keys(capsys, "list", "--json")


def test_rotate_and_revoke(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = keys(capsys, "create", "team-a", "--expires", "90d")
    second = keys(capsys, "rotate", "team-a", "--grace", "0s")
    ring = KeyRing(None, path)
    assert not isinstance(ring.authenticate(first), Authenticated)
    assert isinstance(ring.authenticate(second), Authenticated)

    key_id = second.split("_")[1]
    assert keys(capsys, "revoke", key_id) == f"revoked {key_id} of team-a"

    assert not isinstance(KeyRing(None, path).authenticate(second), Authenticated)
    assert "ended already" in keys(capsys, "revoke", "team-a")
    rows = json.loads(keys(capsys, "list", "--json"))
    assert [row["state"] for row in rows] == ["expired", "revoked"]


def test_set_changes_what_is_given_only(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    keys(capsys, "create", "team-a", "--requests-per-s", "5", "--isolate-cache")
    keys(capsys, "set", "team-a", "--events-per-s", "50")
    keys(capsys, "set", "team-a", "--share-cache")

    client = read_key_file(path).clients["team-a"]
    assert not client.isolate_cache
    assert (client.limits.requests_per_s, client.limits.events_per_s) == (5, 50)


def test_list_is_a_table(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    keys(capsys, "create", "ops", "--scope", "admin")
    keys(capsys, "create", "gpu-1", "--scope", "engine", "--keys", str(path))

    lines = keys(capsys, "list").splitlines()

    assert lines[0].split()[:3] == ["key", "id", "name"]
    assert [line.split()[1:4] for line in lines[1:]] == [
        ["ops", "admin", "valid"],
        ["gpu-1", "engine", "valid"],
    ]


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["create", "no spaces"], "name: must start"),
        (["create", "a", "--scope", "root"], "scope: must be one of client, admin, engine"),
        (["create", "a", "--expires", "soon"], "expires: must be a number and s, m, h or d"),
        (["create", "a", "--requests-per-s", "0"], "requests_per_s"),
        (["create", "a", "--scope", "engine", "--isolate-cache"], "for clients only"),
        (["rotate", "nobody"], "no key of the name"),
        (["revoke", "nobody"], "no key of the name"),
        (["set", "nobody", "--share-cache"], "no client 'nobody'"),
    ],
)
def test_mistakes_are_told_and_change_nothing(
    path: Path, capsys: pytest.CaptureFixture[str], words: list[str], complaint: str
) -> None:
    assert main(["keys", *words]) == 2
    assert complaint in capsys.readouterr().err
    assert not path.exists()


def test_it_must_be_said_which_file(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("KVFLOW_KEYS_FILE", raising=False)
    assert main(["keys", "list"]) == 2
    assert "KVFLOW_KEYS_FILE" in capsys.readouterr().err
