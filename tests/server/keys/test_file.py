"""The key file: who may read it, what a broken one says, changes at the same time."""

from __future__ import annotations

import json
import stat
import threading
from pathlib import Path

import pytest

from kvflow.errors import EnvironmentProblemError
from kvflow.server.keys import change_key_file, create_key, read_key_file
from tests.server.keys.made import LONG_AGO, MadeKeys


def test_the_file_is_for_its_owner_alone(made: MadeKeys) -> None:
    assert stat.S_IMODE(made.path.stat().st_mode) == 0o600
    assert [path.name for path in made.path.parent.iterdir()] == ["keys.json"]


def test_no_key_is_in_the_file(made: MadeKeys) -> None:
    text = made.path.read_text()

    assert all(key not in text and key[13:] not in text for key in made.keys.values())


@pytest.mark.parametrize("mode", [0o604, 0o602, 0o620, 0o644, 0o666])
def test_a_file_that_others_can_use_is_refused(made: MadeKeys, mode: int) -> None:
    made.path.chmod(mode)

    with pytest.raises(EnvironmentProblemError, match="chmod 600"):
        read_key_file(made.path)


@pytest.mark.parametrize("mode", [0o400, 0o440, 0o640])
def test_a_file_that_a_group_can_read_is_not(made: MadeKeys, mode: int) -> None:
    made.path.chmod(mode)

    assert len(read_key_file(made.path).keys) == 4


def test_a_change_keeps_the_mode_and_a_link(made: MadeKeys, tmp_path: Path) -> None:
    made.path.chmod(0o640)
    link = tmp_path / "link.json"
    link.symlink_to(made.path)

    change_key_file(link, lambda content: create_key(content, "new", "client", LONG_AGO))

    assert link.is_symlink()
    assert stat.S_IMODE(made.path.stat().st_mode) == 0o640
    assert len(read_key_file(made.path).keys) == 5


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(EnvironmentProblemError, match="kvflow keys create"):
        read_key_file(tmp_path / "none.json")
    with pytest.raises(EnvironmentProblemError, match="cannot be written"):
        change_key_file(tmp_path / "none" / "k.json", lambda content: (content, None))


SECRET = "c0ffee" * 10


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "JSON"),
        ('{"salt_secret": "' + SECRET, "JSON"),
        ("[]", "object"),
        ('{"keys": []}', "salt_secret"),
        ('{"salt_secret": "' + SECRET + '"}', "salt_secret"),
        ('{"salt_secret": "' + "0" * 64 + '", "keyz": []}', "keyz"),
        ('{"version": 2, "salt_secret": "' + "0" * 64 + '"}', "version"),
    ],
)
def test_a_broken_file_is_told_without_its_content(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "keys.json"
    path.write_text(text)
    path.chmod(0o600)

    with pytest.raises(EnvironmentProblemError, match=words) as refused:
        read_key_file(path)

    assert SECRET not in str(refused.value)
    assert refused.value.__cause__ is None


def test_a_name_with_two_scopes_or_an_id_twice_is_broken(made: MadeKeys) -> None:
    whole = json.loads(made.path.read_text())
    for change in ({"name": "ops"}, {"key_id": whole["keys"][0]["key_id"]}):
        content = json.loads(made.path.read_text())
        content["keys"][1] |= change
        made.path.write_text(json.dumps(content))

        with pytest.raises(EnvironmentProblemError, match=r"keys\[1\]"):
            read_key_file(made.path)

        made.path.write_text(json.dumps(whole))


def test_a_change_that_fails_leaves_the_file(made: MadeKeys) -> None:
    before = made.path.read_bytes()

    with pytest.raises(ZeroDivisionError):
        change_key_file(made.path, lambda content: (content, 1 // 0))

    assert made.path.read_bytes() == before
    assert len(list(made.path.parent.iterdir())) == 1


def test_no_change_is_lost_to_another(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"

    def make(number: int) -> None:
        for turn in range(4):
            change_key_file(
                path,
                lambda content, name=f"c{number}-{turn}": create_key(
                    content, name, "client", LONG_AGO
                ),
            )

    threads = [threading.Thread(target=make, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len({key.name for key in read_key_file(path).keys}) == 16
