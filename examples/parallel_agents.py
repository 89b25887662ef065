"""Three researchers at once, whose answers are streamed, and an editor who waits for all of them.

Needs a running engine (`kvflow engine`) and service (`kvflow serve`); `pip install openai`.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator

from openai import AsyncOpenAI

from kvflow.agent_sdk import Workflow

BASE_URL = os.environ.get("OPENAI_BASE_URL", "http://127.0.0.1:30000/v1")

client = AsyncOpenAI(base_url=BASE_URL, api_key=os.environ.get("OPENAI_API_KEY", "none"))
workflow = Workflow("research")


async def stream(system: str, user: str) -> AsyncIterator[str]:
    chunks = await client.chat.completions.create(
        model="default",
        messages=[{"role": "system", "content": system}, {"role": "user", "content": user}],
        max_tokens=32,
        stream=True,
    )
    async for chunk in chunks:
        if chunk.choices:
            yield chunk.choices[0].delta.content or ""


@workflow.agent("splitter")
async def splitter(question: str) -> list[str]:
    return [f"{question} ({aspect})" for aspect in ("history", "physics", "language")]


# An agent that runs several times at once: each call is a step of its own.
@workflow.agent("researcher", after=["splitter"])
async def researcher(question: str) -> str:
    return "".join([text async for text in stream("You answer in one sentence.", question)])


# A generator is a step until it is exhausted or closed.
@workflow.agent("editor", after=["researcher"])
async def editor(findings: list[str]) -> AsyncIterator[str]:
    async for text in stream("You merge notes into one sentence.", "\n".join(findings)):
        yield text


async def main() -> None:
    async with client, workflow.run():
        questions = await splitter("Why is the sky blue?")
        findings = await asyncio.gather(*(researcher(question) for question in questions))
        async for text in editor(findings):
            print(text, end="", flush=True)
        print()


if __name__ == "__main__":
    asyncio.run(main())
