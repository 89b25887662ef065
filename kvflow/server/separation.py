"""A client that gets its first key leaves the namespace that clients without keys share."""

from __future__ import annotations

import logging

from kvflow.server.keys import KeyRing
from kvflow.server.workflows import Workflows

__all__ = ["ClientSeparation"]

logger = logging.getLogger("kvflow.server.keys")


class ClientSeparation:
    """Ends what a client with keys still has outside its own namespace.

    Whoever could name the client has made those workflows, and its keys do not reach them. Left
    alone they would go on to weigh the client's agents at the engines, and count among its
    workflows, until their time is over.
    """

    def __init__(self, keys: KeyRing, workflows: Workflows) -> None:
        self._keys = keys
        self._workflows = workflows
        self._separated: frozenset[str] = frozenset()

    async def look(self) -> None:
        """Go by the keys as they are now. About once a second.

        Raises:
            StoreUnavailableError: the next look tries again.
        """
        clients = self._keys.clients()
        if clients == self._separated:
            return
        ended = await self._workflows.end_outside(clients - self._separated)
        for client_id, count in sorted(ended.items()):
            logger.info(
                "client %s has keys now: %d workflow(s) that it had without one were ended",
                client_id,
                count,
            )
        self._separated = frozenset(clients)
