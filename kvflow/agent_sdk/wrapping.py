"""Wrapping an agent's function, of whatever kind, so that each call is a step.

The wrapper has the signature, the kind (function, coroutine function, generator function, async
generator function), the results and the exceptions of what it wraps. A step lasts from the start of
the body to its end, however that comes: return, exception, cancellation, exhaustion, ``close()``.
The step is current only while the body runs, not while a generator waits for its consumer.
"""

from __future__ import annotations

import functools
import inspect
import types
import weakref
from collections.abc import Callable, Generator
from typing import Any, Final

from kvflow.agent_sdk.run import StepScope
from kvflow.errors import InvalidInputError

__all__ = ["wrap_agent"]

_OpenStep = Callable[[], StepScope]


def wrap_agent(agent_id: str, function: Any, open_step: _OpenStep) -> Any:
    """``function``, with each call of it inside a step that ``open_step()`` begins.

    Raises:
        InvalidInputError: it is no function.
    """
    decorator = f"@agent({agent_id!r})"
    if isinstance(function, staticmethod | classmethod):
        raise InvalidInputError((decorator,), f"goes below @{type(function).__name__}, not above")
    if inspect.isclass(function) or not callable(function):
        raise InvalidInputError(
            (decorator,), f"decorates functions and methods, one that does a step; not {function!r}"
        )
    body: Any = function
    if not inspect.isroutine(function) and not isinstance(function, functools.partial):
        body = function.__call__  # an object whose class defines __call__
    if inspect.iscoroutinefunction(body):
        wrapper = _of_coroutine_function(function, open_step)
    elif inspect.isasyncgenfunction(body):
        wrapper = _of_async_generator_function(function, open_step)
    elif inspect.isgeneratorfunction(body):
        wrapper = _of_generator_function(function, open_step)
    else:
        wrapper = _of_function(function, open_step)
    return functools.wraps(function)(wrapper)


def _of_coroutine_function(function: Callable[..., Any], open_step: _OpenStep) -> Any:
    async def wrapper(*args: Any, **kwargs: Any) -> Any:
        scope = open_step()
        try:
            with scope.running():
                return await function(*args, **kwargs)
        finally:
            scope.finish()

    return wrapper


def _of_generator_function(function: Callable[..., Any], open_step: _OpenStep) -> Any:
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        scope = open_step()
        try:
            return (yield from _Resumed(function(*args, **kwargs), scope))
        finally:
            scope.finish()

    return wrapper


def _of_async_generator_function(function: Callable[..., Any], open_step: _OpenStep) -> Any:
    async def wrapper(*args: Any, **kwargs: Any) -> Any:
        scope = open_step()
        try:
            inner = function(*args, **kwargs)
            resume = functools.partial(inner.asend, None)
            while True:
                try:
                    with scope.running():
                        item = await resume()
                except StopAsyncIteration:
                    return
                try:
                    resume = functools.partial(inner.asend, (yield item))
                except GeneratorExit:
                    with scope.running():
                        await inner.aclose()
                    raise
                except BaseException as error:
                    resume = functools.partial(inner.athrow, error)
        finally:
            scope.finish()

    return wrapper


def _of_function(function: Callable[..., Any], open_step: _OpenStep) -> Any:
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        scope = open_step()
        continued = None
        try:
            with scope.running():
                result = function(*args, **kwargs)
            wrap_rest = _REST.get(type(result))
            if wrap_rest is None:
                return result
            # A plain function, perhaps another decorator's wrapper, around one that does its work
            # later: the step goes on until that is done, or thrown away.
            continued = wrap_rest(lambda: result, lambda: scope)()
            weakref.finalize(continued, _end, scope, result).atexit = False
            return continued
        finally:
            if continued is None:
                scope.finish()

    return wrapper


def _end(scope: StepScope, rest: Any) -> None:
    """What was to go on has gone, perhaps without ever having begun."""
    if isinstance(rest, types.CoroutineType):
        rest.close()
    scope.finish()


_REST: Final[dict[type, Callable[[Callable[..., Any], _OpenStep], Any]]] = {
    types.CoroutineType: _of_coroutine_function,
    types.GeneratorType: _of_generator_function,
    types.AsyncGeneratorType: _of_async_generator_function,
}


class _Resumed(Generator[Any, Any, Any]):
    """A generator whose body sees the step as current, each time it is resumed."""

    def __init__(self, inner: Generator[Any, Any, Any], scope: StepScope) -> None:
        self._inner = inner
        self._scope = scope

    def send(self, value: Any, /) -> Any:
        with self._scope.running():
            return self._inner.send(value)

    def throw(self, *error: Any) -> Any:
        with self._scope.running():
            return self._inner.throw(*error)

    def close(self) -> None:
        with self._scope.running():
            self._inner.close()
