"""A service in a process of its own, which ends by SIGKILL."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def killed_service(mqtt_url: str, folder: Path) -> Iterator[None]:
    """Runs inside the ``with`` block and is killed at its end."""
    program = (
        "from pydantic import SecretStr\n"
        "from kvflow.server import ServiceSettings, run\n"
        "import sys\n"
        "run(ServiceSettings(port=0, lease_s=2, mqtt_url=SecretStr(sys.argv[1])))\n"
    )
    with (folder / "service.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-c", program, mqtt_url], stdout=log, stderr=log
        )
    try:
        yield
    finally:
        process.kill()
        process.wait(20)
