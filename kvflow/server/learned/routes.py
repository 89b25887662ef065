"""``/v1/learned``: what was learned, as graphs that can be declared."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Request

from kvflow.graph_specs import graph_specs
from kvflow.protocol import (
    DEFAULT_CLIENT_ID,
    Identifier,
    LearnedGraph,
    LearnedList,
    LearnedSummary,
)
from kvflow.server.finishing import finished
from kvflow.server.identity import RequestIdentity, check_client_id
from kvflow.server.learned.orders import LearnedOrders
from kvflow.server.learned.persistence import LearnedPersistence
from kvflow.server.openapi import problems

__all__ = ["learned_routes"]

ClientId = Annotated[
    Identifier | None, Query(description="Whose; without keys, `default` if absent.")
]


def learned_routes(orders: LearnedOrders, persistence: LearnedPersistence) -> APIRouter:
    """Each shows the namespace of whoever asks."""
    router = APIRouter(prefix="/v1/learned", tags=["learned"])

    @router.get("", responses=problems(422))
    async def list_learned(who: RequestIdentity, client_id: ClientId = None) -> LearnedList:
        """Families of workflows whose order is being learned, and how well it predicts."""
        return LearnedList(
            families=[
                LearnedSummary(
                    family=one.family,
                    client_id=one.client_id,
                    agents=list(one.model.agent_ids),
                    score=round(one.model.score.value, 4),
                    scored=one.model.score.scored,
                    used=one.model.score.used,
                )
                for one in orders.families(who.namespace, client_id)
            ]
        )

    @router.get("/{family:path}", responses=problems(404, 422))
    async def get_learned(
        family: str, who: RequestIdentity, request: Request, client_id: ClientId = None
    ) -> LearnedGraph:
        """What was learned of a family: a body that `POST /v1/workflows` takes as it is."""
        client = _client(request, who, client_id)
        graph = orders.graph(who.namespace, client, family)
        agents, edges = graph_specs(graph)
        return LearnedGraph(
            client_id=client,
            name=None if family.startswith("from:") else family,
            agents=agents,
            edges=edges,
            entry=list(graph.entry),
        )

    @router.delete(
        "/{family:path}", status_code=204, response_model=None, responses=problems(404, 422, 503)
    )
    async def forget_learned(
        family: str, who: RequestIdentity, request: Request, client_id: ClientId = None
    ) -> None:
        """Forget what was learned of a family. Workflows under way go on with what they have."""
        client = _client(request, who, client_id)
        await finished(persistence.forget(who.namespace, client, family))

    return router


def _client(request: Request, who: RequestIdentity, client_id: str | None) -> str:
    if client_id is not None:
        check_client_id(request, who, client_id)
    return who.namespace or client_id or DEFAULT_CLIENT_ID
