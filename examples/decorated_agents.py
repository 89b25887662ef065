"""A planner, then a coder or a writer, then a reviewer who may ask for another round.

Needs a running engine (`kvflow engine`) and service (`kvflow serve`); `pip install openai`.
"""

from __future__ import annotations

import os

from openai import OpenAI

from kvflow.agent_sdk import Workflow, choice

BASE_URL = os.environ.get("OPENAI_BASE_URL", "http://127.0.0.1:30000/v1")

client = OpenAI(base_url=BASE_URL, api_key=os.environ.get("OPENAI_API_KEY", "none"))
workflow = Workflow("write-and-review")


def ask(system: str, user: str) -> str:
    answer = client.chat.completions.create(
        model="default",
        messages=[{"role": "system", "content": system}, {"role": "user", "content": user}],
        max_tokens=48,
    )
    return answer.choices[0].message.content or ""


# "reviewer" is defined further down: loops are ordinary. As the planner comes after another agent,
# it has to be said that it can also run first, and that it does not wait for a review then.
@workflow.agent("planner", after=["reviewer"], join="any", entry=True)
def planner(task: str) -> str:
    return ask("You make a plan in one sentence.", task)


@workflow.agent("coder", after=[choice("planner")])
def coder(plan: str) -> str:
    return ask("You write a short Python function.", plan)


@workflow.agent("writer", after=[choice("planner")])
def writer(plan: str) -> str:
    return ask("You write two plain sentences.", plan)


@workflow.agent("reviewer", after=["coder", "writer"], join="any")
def reviewer(draft: str) -> str:
    return ask("You name one weakness of the draft.", draft)


def main() -> None:
    with workflow.run() as run:
        print(f"run {run.workflow_id}")
        task = "Count the vowels in a text."
        for make in (coder, writer):
            draft = make(planner(task))
            task = reviewer(draft)
            print(f"- {task}")


if __name__ == "__main__":
    main()
