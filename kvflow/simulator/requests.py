"""A call on its way through the engine."""

from __future__ import annotations

from kvflow.sglang_plugin.control import WorkflowKey
from kvflow.simulator.prefixes import Path
from kvflow.simulator.radix import Node
from kvflow.workload import WorkloadCall

__all__ = ["Request"]


class Request:
    """What the engine knows of one call.

    Attributes:
        client: whoever is told when it is over.
        client_id: on whose behalf it is made.
        key: the workflow; None where nothing was declared.
        path: of its prompt.
        whole: of prompt and answer.
        position: of the call in its workflow.
        priority: what the client gives it.
        node: the last node that it holds.
        held_tokens: length up to there; KV beyond is the request's own.
        computed_tokens: of the prompt, cached ones included.
        inserted_tokens: up to where it has put KV into the tree.
        fetched_tokens: what was fetched from storage for it.
        own_tokens: its KV outside the tree, in whole pages.
        ends_at_step: number of the decode step that gives the last token.
    """

    __slots__ = (
        "arrived_s",
        "call",
        "client",
        "client_id",
        "computed_tokens",
        "ends_at_step",
        "fetched_tokens",
        "first_token_s",
        "held_tokens",
        "hit_device",
        "hit_host",
        "hit_storage",
        "inserted_tokens",
        "key",
        "log_position",
        "node",
        "output_tokens",
        "own_tokens",
        "path",
        "position",
        "priority",
        "prompt_tokens",
        "rid",
        "whole",
    )

    def __init__(
        self,
        call: WorkloadCall,
        *,
        rid: str,
        position: int,
        client: object,
        client_id: str,
        key: WorkflowKey | None,
        path: Path,
        whole: Path,
        priority: int,
        arrived_s: float,
    ) -> None:
        self.rid = rid
        self.call = call
        self.position = position
        self.client = client
        self.client_id = client_id
        self.key = key
        self.path = path
        self.whole = whole
        self.priority = priority
        self.arrived_s = arrived_s
        self.prompt_tokens = path[-1].tokens if path else 0
        self.output_tokens = max(1, call.answer.tokens)
        self.node: Node | None = None
        self.held_tokens = 0
        self.computed_tokens = 0
        self.inserted_tokens = 0
        self.own_tokens = 0
        self.ends_at_step = 0
        self.fetched_tokens = 0
        self.first_token_s = 0.0
        self.hit_device = 0
        self.hit_host = 0
        self.hit_storage = 0
        self.log_position = -1

    @property
    def kv_tokens(self) -> int:
        """KV when it is finished: that of the last token is never computed."""
        return self.prompt_tokens + self.output_tokens - 1
