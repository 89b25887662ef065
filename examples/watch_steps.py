"""The service by itself: create a workflow, report events, and see the steps change.

Needs a running service (`kvflow serve`) only.
"""

from __future__ import annotations

from kvflow.agent_sdk import KVFlowClient

AGENTS = ["planner", "coder", "tester"]
EDGES = [("planner", "coder"), ("coder", "tester"), ("tester", "coder")]


def main() -> None:
    with KVFlowClient() as client:
        workflow_id = client.create_workflow(
            {
                "agents": [
                    {"agent_id": agent, "join": "any" if agent == "coder" else "all"}
                    for agent in AGENTS
                ],
                "edges": [{"source": source, "target": target} for source, target in EDGES],
                "entry": ["planner"],
            }
        ).workflow_id
        for agent in ["planner", "coder", "tester", "coder"]:
            for event in ("step_started", "step_finished"):
                client.post_events(workflow_id, [{"type": event, "agent_id": agent}])
                steps = client.steps(workflow_id).steps_to_execution
                print(f"{agent:8} {event:14}", steps)
        client.delete_workflow(workflow_id)


if __name__ == "__main__":
    main()
