"""``test_openai_hook.py`` once more, with openai 3 instead of the version SGLang pins."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

OVERLAY = Path(sys.prefix) / "overlays" / "openai3"


@pytest.mark.skipif(
    os.environ.get("KVFLOW_SKIP_OPENAI3") == "1", reason="KVFLOW_SKIP_OPENAI3=1 is set"
)
@pytest.mark.timeout(300)
def test_with_openai_3() -> None:
    assert (OVERLAY / "openai").is_dir(), (
        f"openai 3 is not in {OVERLAY}: run `make test`, which puts it there, "
        "or set KVFLOW_SKIP_OPENAI3=1 to go without"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [
            sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider",
            "tests/agent_sdk/test_openai_hook.py",
        ],
        cwd=root,
        env={
            **os.environ,
            "PYTHONPATH": f"{OVERLAY}{os.pathsep}{root}",
            "KVFLOW_TEST_OPENAI_MAJOR": "3",
        },
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "passed" in done.stdout
    assert "skipped" not in done.stdout
