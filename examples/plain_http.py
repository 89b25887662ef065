"""Without the openai package and without decorators: a workflow as data, steps as blocks.

Needs a running engine (`kvflow engine`) and service (`kvflow serve`), or, with
KVFLOW_SERVICE_URL=off, the engine alone: the steps then travel with the requests.
"""

from __future__ import annotations

import os

import httpx2

from kvflow.agent_sdk import Workflow, request_metadata

BASE_URL = os.environ.get("OPENAI_BASE_URL", "http://127.0.0.1:30000/v1")

workflow = Workflow(
    "translate",
    agents=["translator", {"agent_id": "proofreader", "fixed_prefix_tokens": 24}],
    edges=[("translator", "proofreader")],
)


def ask(system: str, user: str) -> str:
    body = {
        "model": "default",
        "messages": [{"role": "system", "content": system}, {"role": "user", "content": user}],
        "max_tokens": 32,
        "custom_params": request_metadata(),
    }
    reply = httpx2.post(f"{BASE_URL}/chat/completions", json=body, timeout=120)
    text: str = reply.raise_for_status().json()["choices"][0]["message"]["content"]
    return text


def main() -> None:
    with workflow.run() as run:
        with run.step("translator"):
            french = ask("You translate into French.", "Good morning.")
        with run.step("proofreader"):
            print(ask("You correct French.", french))


if __name__ == "__main__":
    main()
