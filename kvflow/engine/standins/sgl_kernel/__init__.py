"""Import-only stand-in for ``sgl_kernel`` on a machine without CUDA.

SGLang imports some kernels by name while it loads and calls none of them on the path a text model
takes on the CPU.  The published wheel cannot be imported without CUDA, so KVFlow's launcher puts
this folder on the path of the engine and its children, on a CPU machine only.  Whatever is taken
from it raises when called.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NoReturn

from ._absent import absent

__version__ = "0.0.0+kvflow.standin"


def __getattr__(name: str) -> Callable[..., NoReturn]:
    return absent(__name__, name)
