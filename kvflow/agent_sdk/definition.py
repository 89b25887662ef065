"""What all runs of a workflow have in common."""

from __future__ import annotations

import re
import secrets
from dataclasses import dataclass, field

from kvflow.errors import InvalidInputError
from kvflow.graph import Agent, AgentStepGraph
from kvflow.graph_specs import graph_specs
from kvflow.protocol import DEFAULT_TTL_S, MAX_TTL_S, WorkflowSpec

__all__ = ["WorkflowDefinition", "check_name_and_ttl"]


@dataclass(frozen=True, slots=True, eq=False)
class WorkflowDefinition:
    """A name, a lifetime and a checked graph. Compared by identity.

    Attributes:
        ttl_s: the service drops a run that reports nothing for this long.
        agents: the graph's agents by id.
    """

    name: str | None
    graph: AgentStepGraph
    ttl_s: float = DEFAULT_TTL_S
    agents: dict[str, Agent] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "agents", {agent.agent_id: agent for agent in self.graph.agents})

    def new_workflow_id(self) -> str:
        """An id that tells people the name and is taken by nobody else."""
        slug = re.sub(r"[^A-Za-z0-9._-]+", "-", self.name or "").strip("-._")[:40]
        return f"{slug or 'workflow'}-{secrets.token_hex(8)}"

    def spec(self, workflow_id: str, client_id: str) -> WorkflowSpec:
        """The creation body of one run."""
        agents, edges = graph_specs(self.graph)
        return WorkflowSpec(
            workflow_id=workflow_id,
            client_id=client_id,
            name=self.name,
            ttl_s=self.ttl_s,
            agents=agents,
            edges=edges,
            entry=list(self.graph.entry),
        )


def check_name_and_ttl(name: str | None, ttl_s: float) -> None:
    """Refuse what the service would refuse.

    Raises:
        InvalidInputError: the field is named.
    """
    if name is not None and (not isinstance(name, str) or len(name) > 256):
        raise InvalidInputError(("name",), f"must be text of at most 256 characters, not {name!r}")
    if not isinstance(ttl_s, int | float) or not 0 < ttl_s <= MAX_TTL_S:
        raise InvalidInputError(
            ("ttl_s",), f"must be a number of seconds from 0 to {MAX_TTL_S:.0f}, not {ttl_s!r}"
        )
