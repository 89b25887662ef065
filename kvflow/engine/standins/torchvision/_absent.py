"""What every name of the stand-in resolves to."""

from __future__ import annotations

from collections.abc import Callable
from typing import NoReturn


def absent(module: str, name: str) -> Callable[..., NoReturn]:
    """Return a callable that names itself and says what to do; to be a module's ``__getattr__``.

    Dunder names are refused, so that introspection (``inspect``, ``importlib``) sees a module
    without them instead of a function in their place.
    """
    if name.startswith("__"):
        raise AttributeError(f"module {module!r} has no attribute {name!r}")

    def operation(*_args: object, **_kwargs: object) -> NoReturn:
        raise NotImplementedError(
            f"{module}.{name} was called, but this is KVFlow's import-only stand-in for "
            "torchvision on a CPU machine: images and video are not supported there. "
            "Serve a text model, or run on a CUDA machine with `kvflow engine --device cuda`."
        )

    operation.__name__ = operation.__qualname__ = name
    return operation
