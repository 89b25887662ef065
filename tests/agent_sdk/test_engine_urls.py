from __future__ import annotations

import pytest

from kvflow.agent_sdk.engine_urls import EngineUrls
from kvflow.errors import InvalidInputError

PATH = "/v1/chat/completions"


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1:30000" + PATH,
        "http://gpu-1:30000" + PATH,
        "https://llm.example.org" + PATH,
        "https://notopenai.com" + PATH,
        "http://api.openai.com.internal:30000" + PATH,
    ],
)
def test_any_address_may_be_an_engine(url: str) -> None:
    assert EngineUrls().allow(url)
    assert not EngineUrls().allow(url, hosted_client=True)


@pytest.mark.parametrize(
    "url",
    [
        "https://api.openai.com" + PATH,
        "https://API.OpenAI.com:443" + PATH,
        "https://api.openai.com." + PATH,
        "https://eu.api.openai.com" + PATH,
        "https://me.openai.azure.com/openai/deployments/gpt/chat/completions",
        "https://me.cognitiveservices.azure.com/openai" + PATH,
        "https://me.services.ai.azure.com/openai" + PATH,
        "https://bedrock-runtime.us-west-2.amazonaws.com/openai" + PATH,
        "https://generativelanguage.googleapis.com/v1beta/openai/chat/completions",
        "https://api.groq.com/openai" + PATH,
        "not an address",
        "/v1/chat/completions",
    ],
)
def test_hosted_apis_are_not(url: str) -> None:
    assert not EngineUrls().allow(url)


def test_given_addresses_are_the_only_ones() -> None:
    urls = EngineUrls.resolve(["http://gpu-1:30000/v1/", "https://llm.example.org"])
    assert urls.allow("http://gpu-1:30000/v1/chat/completions")
    assert urls.allow("https://llm.example.org:443/any/chat/completions")
    assert not urls.allow("http://gpu-1:30000/v2/chat/completions")
    assert not urls.allow("http://gpu-1:30000/v11/chat/completions")
    assert not urls.allow("http://gpu-1:30001/v1/chat/completions")
    assert not urls.allow("https://gpu-1:30000/v1/chat/completions")
    assert not urls.allow("http://gpu-2:30000/v1/chat/completions")


def test_a_given_address_counts_even_if_it_looks_hosted() -> None:
    urls = EngineUrls.resolve(["https://engine.azure.com"])
    assert urls.allow("https://engine.azure.com/v1/chat/completions", hosted_client=True)


def test_environment() -> None:
    environ = {"KVFLOW_ENGINE_URLS": " http://a:1, http://b:2 ,"}
    assert EngineUrls.resolve(environ=environ).only == ("http://a:1", "http://b:2")
    assert EngineUrls.resolve(environ={}).only == ()
    assert EngineUrls.resolve("http://c:3", environ=environ).only == ("http://c:3",)


@pytest.mark.parametrize("url", ["gpu-1:30000", "http://", "", "http://host:port"])
def test_wrong_address_is_named(url: str) -> None:
    with pytest.raises(InvalidInputError) as caught:
        EngineUrls.resolve(["http://ok", url])
    assert caught.value.field == ("engine_urls", 1)
