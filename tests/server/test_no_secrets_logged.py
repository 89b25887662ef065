"""Whatever is asked, no key and no salt gets into a log."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from datetime import UTC, datetime

import httpx2

from kvflow.server.keys import KeyRing, change_key_file, read_key_file, revoke
from tests.server.keys.conftest import made
from tests.server.keys.made import MadeKeys
from tests.server.running import PATIENCE_S, eventually
from tests.server.workflow_bodies import cycle, started

__all__ = ["made"]

ADMIN = "weak-but-secret-admin-key"
GUESS = "kvf_aaaaaaaa_" + "guess" * 8 + "abc"


def test_no_secrets_in_logs(made: MadeKeys) -> None:
    made.isolate("team-a")
    salt = KeyRing(None, made.path).acting_for("team-a").cache_salt
    content = json.loads(made.path.read_text())
    secrets = [ADMIN, GUESS, salt, content["salt_secret"], *made.keys.values()]
    secrets += [key["sha256"] for key in content["keys"]]
    environment = {name: value for name, value in os.environ.items() if name[:7] != "KVFLOW_"}
    process = subprocess.Popen(
        [sys.executable, "-m", "kvflow.cli.main", "--debug", "serve", "--port", "0"],
        stderr=subprocess.STDOUT,
        stdout=subprocess.PIPE,
        text=True,
        env=environment
        | {
            "KVFLOW_KEYS_FILE": str(made.path),
            "KVFLOW_API_KEY": ADMIN,
            "KVFLOW_LOG_LEVEL": "debug",
            "KVFLOW_ACCESS_LOG": "1",
        },
    )
    output: list[str] = []
    try:
        assert process.stdout is not None
        for line in process.stdout:
            output.append(line)
            if found := re.search(r"listening on (http://\S+)", line):
                break
        with httpx2.Client(base_url=found[1], timeout=PATIENCE_S) as http:  # type: ignore[index]
            statuses = _requests(http, made)
            made.path.write_text(made.path.read_text()[:-30])

            def broken_is_noticed() -> bool:
                return http.get("/v1/workflows", headers=made.headers("ops")).status_code == 200

            eventually(broken_is_noticed)
    finally:
        process.terminate()
        rest, _ = process.communicate(timeout=PATIENCE_S)
    log = "".join(output) + rest
    assert {200, 201, 401, 403, 404, 422} <= statuses
    assert "refused a request from 127.0.0.1" in log  # the log is one that could hold them
    assert '"GET /v1/workflows HTTP/1.1" 200' in log
    for secret in secrets:
        assert secret
        assert secret not in log
        assert secret[13:40] not in log


def _requests(http: httpx2.Client, made: MadeKeys) -> set[int]:
    statuses = set()
    keys = [*made.keys.values(), ADMIN, GUESS, made.keys["team-a"] + "x", "two words"]
    for key in keys:
        headers = {"Authorization": f"Bearer {key}"}
        for answer in (
            http.get("/v1/workflows", headers=headers),
            http.post("/v1/workflows", headers=headers, json=cycle()),
            http.post("/v1/workflows/w/events", headers=headers, json=started("none")),
            http.post("/v1/workflows", headers=headers, content=b"{" + key.encode()),
            http.post("/v1/workflows", headers=headers, json={"api_key": key}),
            http.get("/metrics", headers=headers),
        ):
            statuses.add(answer.status_code)
            assert "sha256" not in answer.text
    change_key_file(made.path, lambda content: revoke(content, "team-b", datetime.now(UTC)))
    http.get("/v1/workflows", headers={"Authorization": f"Basic {ADMIN}"})
    return statuses


def test_nothing_that_holds_a_secret_shows_it(made: MadeKeys) -> None:
    made.isolate("team-a")
    ring = KeyRing(ADMIN, made.path)
    found = ring.authenticate(made.keys["team-a"])

    content = read_key_file(made.path)

    salt = ring.acting_for("team-a").cache_salt
    assert salt is not None
    for shown in (repr(ring), repr(found), repr(content)):
        for secret in (ADMIN, made.keys["team-a"], salt, content.salt_secret):
            assert secret not in shown
