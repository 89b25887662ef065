"""What the plugin reads from the environment of the engine."""

from __future__ import annotations

import socket
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, cast, get_args
from urllib.parse import urlsplit

from kvflow.errors import InvalidInputError
from kvflow.sglang_plugin.due_times import Order

__all__ = ["PluginSettings"]

DEFAULT_SERVICE_URL = "http://127.0.0.1:8100"
DEFAULT_REPORT_INTERVAL_S = 2.0
_OFF = ("", "off", "none")


@dataclass(frozen=True, slots=True)
class PluginSettings:
    """Settings of the plugin, from ``KVFLOW_*`` variables.

    Attributes:
        service_url: ``KVFLOW_SERVICE_URL``; None (set it to ``off``) for in-band values only.
        api_key: ``KVFLOW_API_KEY``, sent as bearer token.
        lease_s: ``KVFLOW_LEASE_S``; the service's own value if unset.
        engine_id: ``KVFLOW_ENGINE_ID``; host name if unset.
        prefetch: ``KVFLOW_PREFETCH``, ``on`` or ``off``: bring KV nearer before it is asked for.
        load: ``KVFLOW_LOAD``: ``load`` what a request finds in host memory, ``recompute`` it, or
            (``auto``) whichever is measured to be faster.
        admission_overcommit: ``KVFLOW_ADMISSION_OVERCOMMIT``; None (``off``) or the ratio of live
            context to device pool above which whole workflows are held back.
        order: ``KVFLOW_ORDER``: evict what is needed latest by ``steps``, or by expected ``time``
            where the service knows durations.
        prefetch_max_tokens: ``KVFLOW_PREFETCH_MAX_TOKENS``: device loads under way at most.
        report_interval_s: ``KVFLOW_REPORT_INTERVAL_S``: how often the service is told what the
            cache holds; None (``0`` or ``off``) for never.
        trace_dir: ``KVFLOW_TRACE_DIR``: where ``kvflow trace`` asks for traces; None for none.
    """

    service_url: str | None = DEFAULT_SERVICE_URL
    api_key: str | None = field(default=None, repr=False)
    lease_s: float | None = None
    engine_id: str = "engine"
    prefetch: bool = True
    load: Literal["auto", "load", "recompute"] = "auto"
    admission_overcommit: float | None = None
    order: Order = "steps"
    prefetch_max_tokens: int = 8192
    report_interval_s: float | None = DEFAULT_REPORT_INTERVAL_S
    trace_dir: Path | None = None

    @classmethod
    def from_env(cls, env: Mapping[str, str]) -> PluginSettings:
        """Read and check the variables.

        Raises:
            InvalidInputError: names the variable, what is wrong, and what would be right.
        """
        url = env.get("KVFLOW_SERVICE_URL", DEFAULT_SERVICE_URL).strip().rstrip("/")
        service_url = None if url.lower() in _OFF else url
        if service_url is not None and (
            urlsplit(service_url).scheme not in ("http", "https")
            or not urlsplit(service_url).hostname
        ):
            raise InvalidInputError(
                ["KVFLOW_SERVICE_URL"],
                f"{url!r} is not an http(s) URL; give e.g. {DEFAULT_SERVICE_URL}, or 'off'",
            )
        return cls(
            service_url=service_url,
            api_key=env.get("KVFLOW_API_KEY") or None,
            lease_s=_positive(env, "KVFLOW_LEASE_S", "number of seconds", "10"),
            engine_id=env.get("KVFLOW_ENGINE_ID") or socket.gethostname(),
            prefetch=_choice(env, "KVFLOW_PREFETCH", ("on", "off")) == "on",
            load=cast(
                "Literal['auto', 'load', 'recompute']",
                _choice(env, "KVFLOW_LOAD", ("auto", "load", "recompute")),
            ),
            order=cast("Order", _choice(env, "KVFLOW_ORDER", get_args(Order))),
            admission_overcommit=None
            if env.get("KVFLOW_ADMISSION_OVERCOMMIT", "").lower() in _OFF
            else _positive(env, "KVFLOW_ADMISSION_OVERCOMMIT", "ratio", "1.5, or 'off'"),
            prefetch_max_tokens=int(
                _positive(env, "KVFLOW_PREFETCH_MAX_TOKENS", "number of tokens", "8192") or 8192
            ),
            report_interval_s=None
            if env.get("KVFLOW_REPORT_INTERVAL_S", "").strip().lower() in ("0", "off", "none")
            else _positive(
                env, "KVFLOW_REPORT_INTERVAL_S", "number of seconds", "2, or 0 for no reports"
            )
            or DEFAULT_REPORT_INTERVAL_S,
            trace_dir=Path(env["KVFLOW_TRACE_DIR"]) if env.get("KVFLOW_TRACE_DIR") else None,
        )


def _choice(env: Mapping[str, str], name: str, choices: tuple[str, ...]) -> str:
    """One of ``choices``, the first where the variable is unset or empty."""
    text = env.get(name, "").strip().lower() or choices[0]
    if text not in choices:
        raise InvalidInputError(
            [name], f"{env[name]!r} is not known; use one of {', '.join(choices)}"
        )
    return text


def _positive(env: Mapping[str, str], name: str, what: str, example: str) -> float | None:
    text = env.get(name)
    if not text:
        return None
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise InvalidInputError([name], f"{text!r} is not a positive {what}; give e.g. {example}")
    return value
