"""``/v1/overview`` and below."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query

from kvflow.server.openapi import problems
from kvflow.server.overview import OverviewMaker
from kvflow.server.overview_models import Overview, WorkflowPicture, WorkflowRows

__all__ = ["overview_routes"]

Search = Annotated[str, Query(max_length=256)]


def overview_routes(maker: OverviewMaker) -> APIRouter:
    """What the dashboard polls; for administrators where there are keys."""
    router = APIRouter(prefix="/v1/overview", tags=["overview"])

    @router.get("", responses=problems(422))
    async def overview(
        engine_search: Search = "",
        engines_limit: Annotated[int, Query(ge=0, le=200)] = 50,
    ) -> Overview:
        """Engines, and what they counted in the last minute and the last hour."""
        return maker.overview(engine_search, engines_limit)

    @router.get("/workflows", responses=problems(422))
    async def workflow_rows(
        search: Search = "",
        running: Annotated[bool, Query(description="Only those of which an agent runs.")] = False,
        page: Annotated[
            str | None,
            Query(
                description="`next_page` of the page before.",
                max_length=600,
                pattern=r"^[A-Za-z0-9._:@-]*/[A-Za-z0-9._:@-]+$",
            ),
        ] = None,
        limit: Annotated[int, Query(ge=1, le=200)] = 25,
    ) -> WorkflowRows:
        """Live workflows whose id, client or name contains `search`, in the order of their ids."""
        return await maker.rows(search, running, page, limit)

    @router.get("/workflows/{workflow_id}", responses=problems(404, 422))
    async def workflow_picture(
        workflow_id: str,
        namespace: Annotated[
            str, Query(max_length=256, description="Empty in a service without keys.")
        ] = "",
    ) -> WorkflowPicture:
        """A workflow, and where its agents' fixed prefixes are."""
        return await maker.picture(namespace, workflow_id)

    return router
