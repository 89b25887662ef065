"""The commands of docs/learned-graphs.md, in their order."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

from starlette.testclient import TestClient

DOC = (Path(__file__).parents[3] / "docs" / "learned-graphs.md").read_text()


def test_commands(client: TestClient) -> None:
    blocks = re.findall(r"^```\n(.*?)^```$", DOC, re.DOTALL | re.MULTILINE)
    commands = [line for block in blocks for line in block.replace("\\\n", "").splitlines()]
    assert len(commands) == 4
    saved = ""
    for command in commands:
        words = shlex.split(command)
        url = next(word for word in words if word.startswith("http"))
        path = url.removeprefix("http://127.0.0.1:8100")
        if "-d" in words:
            body = words[words.index("-d") + 1]
            content = saved if body.startswith("@") else body
            headers = {"Content-Type": "application/json"}
            answer = client.post(path, content=content, headers=headers)
        else:
            answer = client.get(path)
            saved = answer.text
        assert answer.is_success, answer.text
    assert "learn" not in answer.json()
    assert answer.json()["name"] == "review"
