"""A compose file's services as processes of this machine, where there is no Docker engine.

Each service's own command, environment, mounts and health check are used, and its dependencies are
waited for.  Only what belongs to containers is put in place of them: names of other services and
``0.0.0.0`` become ``127.0.0.1``, the ports become free ones, and mounted paths lie in a folder.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from kvflow.engine import free_port

ROOT = Path(__file__).parents[2]
COMPOSE = ROOT / "docker" / "compose.yaml"
_PATH = f"{Path(sys.executable).parent}:/usr/bin:/bin:/usr/sbin:/sbin:/usr/local/bin"
_KEPT = ("HOME", "LANG", "LD_LIBRARY_PATH", "TMPDIR", "XDG_CACHE_HOME")


def compose(environ: Mapping[str, str] | None = None) -> dict[str, Any]:
    """The file with its variables put in: ``${NAME:-default}`` and ``$$``."""
    parsed: dict[str, Any] = _interpolated(yaml.safe_load(COMPOSE.read_text()), environ or {})
    return parsed


def _interpolated(value: Any, environ: Mapping[str, str]) -> Any:
    if isinstance(value, dict):
        return {name: _interpolated(one, environ) for name, one in value.items()}
    if isinstance(value, list):
        return [_interpolated(one, environ) for one in value]
    if not isinstance(value, str):
        return value
    return re.sub(
        r"\$\$|\$\{(?P<name>\w+):-(?P<default>[^}]*)\}",
        lambda match: "$" if match[0] == "$$" else environ.get(match["name"]) or match["default"],
        value,
    )


def with_profile(file: Mapping[str, Any], profile: str) -> dict[str, dict[str, Any]]:
    """The services that come up with a profile."""
    return {
        name: service
        for name, service in file["services"].items()
        if profile in service.get("profiles", [profile])
    }


def start_order(services: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Each after all that it depends on."""
    order: list[str] = []

    def visit(name: str, above: tuple[str, ...]) -> None:
        assert name not in above, f"a circle of dependencies: {above}"
        for needed in services[name].get("depends_on", {}):
            visit(needed, (*above, name))
        if name not in order:
            order.append(name)

    for name in services:
        visit(name, ())
    return order


class LocalStack:
    """Services that were started one after the other, each healthy before the next."""

    def __init__(self, folder: Path, services: Mapping[str, Mapping[str, Any]]) -> None:
        self._folder = folder
        self._services = services
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self.ports = {
            service["ports"][0].rpartition(":")[2]: str(free_port())
            for service in services.values()
        }
        assert len(self.ports) == len(services), "two services listen on one port"
        aliases = [
            alias
            for service in services.values()
            for alias in service.get("networks", {}).get("default", {}).get("aliases", [])
        ]
        names = "|".join(map(re.escape, [*services, *aliases]))
        self._host = re.compile(rf"(?<=[/@\"'])(?:{names})(?=:\d)")
        self._port = re.compile(rf"(?<!\d)(?:{'|'.join(self.ports)})(?!\d)")
        self._paths: dict[str, str] = {}

    def url(self, port: int) -> str:
        """Where what listens on this port in its container listens here."""
        return f"http://127.0.0.1:{self.ports[str(port)]}"

    def start(self, name: str, patience_s: float) -> None:
        """Start a service and wait until its health check passes."""
        service = self._services[name]
        for needed in service.get("depends_on", {}):
            assert needed in self._processes, f"{name} needs {needed}"
        self._mount(name, service)
        log = self._folder / f"{name}.log"
        with log.open("wb") as output:
            self._processes[name] = subprocess.Popen(
                self._command(name, service),
                env=self._environ(service),
                stdout=output,
                stderr=output,
                cwd=self._folder,
                start_new_session=True,
            )
        deadline_s = time.monotonic() + patience_s
        while not self.is_healthy(name):
            code = self._processes[name].poll()
            said = log.read_text(errors="replace")[-3000:]
            assert code is None, f"{name} ended with {code}:\n{said}"
            assert time.monotonic() < deadline_s, f"{name} does not get healthy:\n{said}"
            time.sleep(0.25)

    def is_healthy(self, name: str) -> bool:
        """Run the health check once."""
        service = self._services[name]
        how, *command = service["healthcheck"]["test"]
        assert how == "CMD"
        checked = subprocess.run(
            [self._translated(part) for part in command],
            env=self._environ(service),
            capture_output=True,
            check=False,
            timeout=60,
        )
        return checked.returncode == 0

    def log(self, name: str) -> str:
        return (self._folder / f"{name}.log").read_text(errors="replace")

    def stop(self) -> None:
        """All of them, the last one first, each as Docker does: SIGTERM, then SIGKILL."""
        for process in reversed(self._processes.values()):
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                pass
            finally:
                # What it started and left behind.
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait(20)

    def _mount(self, name: str, service: Mapping[str, Any]) -> None:
        for mount in service.get("volumes", []):
            source, target = mount.split(":")[:2]
            here = self._folder / name / target.strip("/")
            here.parent.mkdir(parents=True, exist_ok=True)
            if source.startswith("."):
                original = COMPOSE.parent / source
                if original.is_dir():
                    shutil.copytree(original, here, dirs_exist_ok=True)
                else:
                    shutil.copy(original, here)
            else:
                here.mkdir(exist_ok=True)
            self._paths[target] = str(here)
        for mount in service.get("volumes", []):
            here = Path(self._paths[mount.split(":")[1]])
            for file in [here] if here.is_file() else sorted(here.rglob("*")):
                if file.is_file():
                    file.write_text(self._translated(file.read_text()))

    def _command(self, name: str, service: Mapping[str, Any]) -> list[str]:
        command = [self._translated(part) for part in service["command"]]
        # An image whose entrypoint is the program takes flags as its command.
        return [name, *command] if command[0].startswith("-") else command

    def _environ(self, service: Mapping[str, Any]) -> dict[str, str]:
        given: Mapping[str, str] = service.get("environment", {})
        return {
            **{name: os.environ[name] for name in _KEPT if name in os.environ},
            **{name: self._translated(value) for name, value in given.items()},
            "PATH": _PATH,
        }

    def _translated(self, text: str) -> str:
        text = self._host.sub("127.0.0.1", text.replace("0.0.0.0", "127.0.0.1"))
        text = self._port.sub(lambda match: self.ports[match[0]], text)
        if self._paths:
            targets = "|".join(map(re.escape, sorted(self._paths, key=len, reverse=True)))
            mounted = rf"(?<![\w/.-])(?:{targets})(?![\w.-])"
            text = re.sub(mounted, lambda match: self._paths[match[0]], text)
        return text


def flags(command: Sequence[str]) -> dict[str, str]:
    """``--name=value`` of a command."""
    return {
        name: value for part in command if "=" in part for name, _, value in [part.partition("=")]
    }
