"""Requests of the ``openai`` package carry the current step's metadata.

Works by wrapping ``openai._base_client.BaseClient._build_request(options)``, through which every
attempt of every request of sync, async and Azure clients goes, in openai 1.x to 3.x. The metadata
becomes a top-level body field ``custom_params``, as if the user had passed it in ``extra_body``.
openai is never imported from here: if it is not loaded yet, it is hooked when it is.
"""

from __future__ import annotations

import copy
import functools
import logging
import sys
import threading
from collections.abc import Mapping, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any, Final
from urllib.parse import urlsplit

from kvflow.agent_sdk.step import active_step
from kvflow.agent_sdk.tracing import trace_headers
from kvflow.protocol import CUSTOM_PARAMS_KEY

__all__ = ["hook_openai"]

_log: Final = logging.getLogger("kvflow")
_MODULE: Final = "openai._base_client"
_ROUTES: Final = ("/chat/completions", "/completions")
_MARK: Final = "_kvflow_hooked"
_HINT: Final = (
    'pass extra_body={"custom_params": kvflow.agent_sdk.request_metadata()} in your calls instead'
)
_lock: Final = threading.Lock()
_warned: Final[set[str]] = set()


def hook_openai() -> None:
    """See to it that openai clients carry metadata, now or once openai is imported.

    Idempotent and thread-safe; costs a dictionary lookup or two once it is done.
    """
    module = sys.modules.get(_MODULE)
    if module is not None:
        if not getattr(module.__spec__, "_initializing", False):  # else another thread imports it
            _hook(module)
    elif not any(isinstance(finder, _HookOnImport) for finder in sys.meta_path):
        with _lock:
            if not any(isinstance(finder, _HookOnImport) for finder in sys.meta_path):
                sys.meta_path.insert(0, _HookOnImport())


def _hook(module: ModuleType) -> None:
    base = getattr(module, "BaseClient", None)
    build = getattr(base, "_build_request", None)
    if getattr(build, _MARK, False):
        return
    if base is None or build is None or not hasattr(base, "_prepare_url"):
        _warn_once(
            "hook", f"this version of openai cannot be told about steps automatically; {_HINT}"
        )
        return
    with _lock:
        original = base._build_request
        if getattr(original, _MARK, False):
            return

        @functools.wraps(original)
        def _build_request(self: Any, options: Any, *args: Any, **kwargs: Any) -> Any:
            return original(self, _with_metadata(self, options), *args, **kwargs)

        setattr(_build_request, _MARK, True)
        base._build_request = _build_request


def _with_metadata(client: Any, options: Any) -> Any:
    """``options``, or a copy that carries the current step. Never raises."""
    active = active_step()
    if active is None:
        return options
    try:
        body = _custom_params_for(client, options)
        if body is None:
            return options
        url = str(client._prepare_url(options.url))
        hosted = any("Azure" in c.__name__ or "Bedrock" in c.__name__ for c in type(client).__mro__)
        if not urlsplit(url).path.endswith(_ROUTES) or not active.engine_urls.allow(
            url, hosted_client=hosted
        ):
            return options
        stamped = copy.copy(options)
        stamped.extra_json = {
            **(options.extra_json or {}),
            "custom_params": {**body, **active.custom_params()},
        }
        if headers := trace_headers():
            stamped.headers = _with_headers(options.headers, headers)
    except Exception:
        # The user's request matters more than our field in it.
        _warn_once("stamp", f"could not add the step to an openai request; {_HINT}", exc_info=True)
        return options
    return stamped


def _with_headers(given: Any, ours: Mapping[str, str]) -> dict[str, Any]:
    """The user's own headers, and below them ours; ``given`` may be openai's "not given"."""
    theirs = dict(given) if isinstance(given, Mapping) else {}
    taken = {name.lower() for name in theirs}
    return {name: value for name, value in ours.items() if name not in taken} | theirs


def _custom_params_for(client: Any, options: Any) -> Mapping[str, Any] | None:
    """The user's own ``custom_params`` to add to; ``None`` if the request is to be left alone."""
    body = options.json_data
    if options.method.lower() != "post" or not isinstance(body, Mapping) or options.files:
        return None
    given = {**body, **(options.extra_json or {})}.get("custom_params")
    if given is None:
        return {}
    if not isinstance(given, Mapping) or CUSTOM_PARAMS_KEY in given:
        return None
    return given


def _warn_once(key: str, message: str, *, exc_info: bool = False) -> None:
    if key not in _warned:
        _warned.add(key)
        _log.warning("KVFlow: %s", message, exc_info=exc_info)


class _HookOnImport(MetaPathFinder):
    """Finds nothing itself; lets the finders after it find openai, and hooks what they load."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != _MODULE:
            return None
        for finder in sys.meta_path:
            if finder is self or not hasattr(finder, "find_spec"):
                continue
            spec = finder.find_spec(fullname, path, target)
            if spec is not None:
                _hook_after_exec(spec)
                return spec
        return None


def _hook_after_exec(spec: ModuleSpec) -> None:
    loader: Any = spec.loader
    exec_module = getattr(loader, "exec_module", None)
    if exec_module is None:
        return

    def exec_and_hook(module: ModuleType) -> None:
        exec_module(module)
        _hook(module)

    try:
        loader.exec_module = exec_and_hook
    except AttributeError:
        _log.debug("openai's loader %r cannot be hooked; the next step tries again", loader)
