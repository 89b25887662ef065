"""Which OpenAI-compatible addresses are engines of ours, so that requests may carry metadata."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit

from kvflow.errors import InvalidInputError

__all__ = ["EngineUrls"]

_DEFAULT_PORTS: Final = {"http": 80, "https": 443}

# Public APIs that answer 400 to a body field they do not know, or that have no use for ours.
_HOSTED_APIS: Final = (
    "ai.azure.com",
    "ai21.com",
    "aliyuncs.com",
    "amazonaws.com",
    "anthropic.com",
    "api.mistral.ai",
    "api.x.ai",
    "azure-api.net",
    "azure.com",
    "azure.us",
    "cerebras.ai",
    "cloudflare.com",
    "cohere.ai",
    "cohere.com",
    "deepinfra.com",
    "deepseek.com",
    "fireworks.ai",
    "github.ai",
    "githubcopilot.com",
    "googleapis.com",
    "groq.com",
    "moonshot.ai",
    "moonshot.cn",
    "novita.ai",
    "openai.com",
    "openrouter.ai",
    "perplexity.ai",
    "router.huggingface.co",
    "sambanova.ai",
    "together.ai",
    "together.xyz",
)

_Origin = tuple[str, str, int]


@dataclass(frozen=True, slots=True)
class EngineUrls:
    """A rule for addresses.

    With ``only`` (base addresses such as ``http://gpu-1:30000/v1``) it allows these and what lies
    below them. Without, it allows every address but those of well-known hosted APIs and clients
    made for them (``hosted_client``), which would refuse a request with an unknown field.
    """

    only: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for index, url in enumerate(self.only):
            if _parsed(url) is None:
                raise InvalidInputError(
                    ("engine_urls", index),
                    f"{url!r} is not an http(s) address; it should look like "
                    "http://127.0.0.1:30000 (KVFLOW_ENGINE_URLS, separated by commas)",
                )

    @classmethod
    def resolve(
        cls, urls: Iterable[str] | None = None, *, environ: Mapping[str, str] = os.environ
    ) -> EngineUrls:
        """The given addresses, else those in ``KVFLOW_ENGINE_URLS``, else the rule without any."""
        if urls is None:
            listed = environ.get("KVFLOW_ENGINE_URLS", "").split(",")
            urls = [url.strip() for url in listed if url.strip()]
        elif isinstance(urls, str):
            urls = [urls]
        return cls(tuple(urls))

    def allow(self, url: str, *, hosted_client: bool = False) -> bool:
        """Whether a request to ``url`` may carry metadata. O(number of rules)."""
        target = _parsed(url)
        if target is None:
            return False
        if not self.only:
            (_, host, _), _ = target
            return not hosted_client and not any(
                host == api or host.endswith("." + api) for api in _HOSTED_APIS
            )
        return any(_is_below(target, _parsed(base)) for base in self.only)


def _parsed(url: str) -> tuple[_Origin, str] | None:
    """Origin and path; ``None`` if it is no http(s) address."""
    try:
        parts = urlsplit(url)
        port = parts.port or _DEFAULT_PORTS[parts.scheme]
    except (ValueError, KeyError):
        return None
    if not parts.hostname:
        return None
    return (parts.scheme, parts.hostname.rstrip("."), port), parts.path.rstrip("/")


def _is_below(target: tuple[_Origin, str], base: tuple[_Origin, str] | None) -> bool:
    if base is None or target[0] != base[0]:
        return False
    return target[1] == base[1] or target[1].startswith(base[1] + "/")
