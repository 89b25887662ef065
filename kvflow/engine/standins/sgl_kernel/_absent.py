"""What the kernels of the stand-in resolve to."""

from __future__ import annotations

from collections.abc import Callable
from typing import NoReturn


def absent(module: str, name: str) -> Callable[..., NoReturn]:
    """Return a callable for a CPU kernel; to be a module's ``__getattr__``.

    SGLang names its CPU kernels ``*_cpu`` and imports them unconditionally when it runs on the
    CPU.  Other names are refused: SGLang probes for them and falls back when they are absent.
    """
    if not name.endswith("_cpu"):
        raise AttributeError(f"KVFlow's stand-in for {module!r} has no {name!r}")

    def kernel(*_args: object, **_kwargs: object) -> NoReturn:
        raise NotImplementedError(
            f"{module}.{name} was called, but this is KVFlow's import-only stand-in: there is no "
            "compiled kernel on this machine. A plain text model with KVFlow's default flags "
            "never needs it; some model or flag in use does. Leave that flag out, or run on a "
            "CUDA machine with `kvflow engine --device cuda`."
        )

    kernel.__name__ = kernel.__qualname__ = name
    return kernel
