"""The connection to the Valkey server, and what to say when it is not there."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final

from kvflow.errors import EnvironmentProblemError
from kvflow.server.store.base import StoreUnavailableError
from kvflow.server.store.place import masked
from kvflow.server.store.valkey_scripts import TICK

try:
    import redis
    import redis.asyncio
    from redis.backoff import NoBackoff
except ImportError as missing:
    raise EnvironmentProblemError(
        "several services on one Valkey server need a client for it",
        "pip install 'kvflow[valkey]'",
    ) from missing

__all__ = ["FORM", "MAX_TICK_S", "Link"]

FORM: Final = 1
"""How things are stored. A service refuses a server that a newer one has written to."""

MAX_TICK_S: Final = 10.0
_CONNECT_TIMEOUT_S: Final = 2.0
_ANSWER_TIMEOUT_S: Final = 5.0
_BLOCK_S: Final = 1.0
_CONNECTIONS: Final = 32
_TELL_AGAIN_S: Final = 30.0

logger = logging.getLogger("kvflow.server")


class Link:
    """Commands and scripts on the server.

    A command whose connection breaks is sent once more; scripts can take that.

    Raises:
        EnvironmentProblemError: the server cannot be reached or used.
    """

    def __init__(self, address: str) -> None:
        self.where = masked(address)
        self.problem: str | None = None
        self._told_at_s = -_TELL_AGAIN_S
        url = address.replace("valkeys://", "rediss://", 1).replace("valkey://", "redis://", 1)
        options: dict[str, Any] = {
            "decode_responses": True,
            "socket_connect_timeout": _CONNECT_TIMEOUT_S,
        }
        self.first_now_s = self._check(url, options)
        again = redis.asyncio.retry.Retry(NoBackoff(), 1)
        pool = redis.asyncio.BlockingConnectionPool.from_url(
            url,
            max_connections=_CONNECTIONS,
            timeout=_ANSWER_TIMEOUT_S,
            socket_timeout=_ANSWER_TIMEOUT_S,
            retry=again,
            **options,
        )
        self.client: Any = redis.asyncio.Redis(connection_pool=pool)
        # Waiting for changes has a connection of its own, which may be silent for long.
        self._waiting: Any = redis.asyncio.Redis.from_url(
            url, socket_timeout=_ANSWER_TIMEOUT_S, retry=again, **options
        )
        self._scripts: dict[str, Any] = {}

    async def run(self, script: str, keys: Sequence[str], *arguments: str | float) -> Any:
        """Run a script.

        Raises:
            StoreUnavailableError: the server does not answer, or not as it should.
        """
        prepared = self._scripts.get(script)
        if prepared is None:
            prepared = self._scripts[script] = self.client.register_script(script)
        with self.answering():
            return await prepared(keys=keys, args=arguments)

    async def changes_after(self, last_id: str) -> list[tuple[str, dict[str, str]]]:
        """Changes after this one; waits for some a second at most."""
        with self.answering():
            found = await self._waiting.xread(
                {"kvflow:changes": last_id}, count=1000, block=int(_BLOCK_S * 1000)
            )
        if isinstance(found, dict):
            return [one for entries in found.values() for batch in entries for one in batch]
        return list(found[0][1]) if found else []

    async def close(self) -> None:
        await self.client.aclose()
        await self._waiting.aclose()
        await self.client.connection_pool.disconnect()

    @contextmanager
    def answering(self) -> Iterator[None]:
        """Around what is asked of the server."""
        try:
            yield
        except (redis.RedisError, OSError) as error:
            _end_if_cancelled()
            words = f"the service's Valkey server at {self.where} does not answer: {error}"
            if self.problem is None or time.monotonic() > self._told_at_s + _TELL_AGAIN_S:
                self._told_at_s = time.monotonic()
                logger.error("%s; requests for workflows are answered 503", words)
            self.problem = words
            raise StoreUnavailableError(f"{words}; try again later") from error
        _end_if_cancelled()
        if self.problem is not None:
            self.problem = None
            logger.warning("the Valkey server at %s answers again", self.where)

    def _check(self, url: str, options: dict[str, Any]) -> float:
        try:
            with redis.Redis.from_url(url, socket_timeout=_ANSWER_TIMEOUT_S, **options) as client:
                form: Any = client.get("kvflow:form")
                if form is None:
                    client.set("kvflow:form", FORM, nx=True)
                elif int(form) > FORM:
                    raise EnvironmentProblemError(
                        f"the Valkey database at {self.where} was written by a newer KVFlow "
                        f"(form {form}, this one knows {FORM})",
                        "run that version, or name another database number with --database",
                    )
                self._warn_if_not_durable(client)
                now_s: Any = client.eval(TICK, 0, str(MAX_TICK_S))
                return float(now_s)
        except (redis.RedisError, OSError, ValueError) as error:
            raise EnvironmentProblemError(
                f"the Valkey server at {self.where} cannot be used: {error}",
                "start it, or put its address and password right in --database (KVFLOW_DATABASE)",
            ) from error

    def _warn_if_not_durable(self, client: Any) -> None:
        try:
            found: Any = client.config_get("appendonly", "maxmemory", "maxmemory-policy")
        except redis.RedisError:
            return  # managed servers do not tell
        policy = found.get("maxmemory-policy", "noeviction")
        if found.get("maxmemory", "0") != "0" and policy != "noeviction":
            logger.warning(
                "the Valkey server at %s throws away keys when its memory is full "
                "(maxmemory-policy %s), workflows among them; set it to noeviction",
                self.where,
                policy,
            )
        if found.get("appendonly") != "yes":
            logger.warning(
                "the Valkey server at %s keeps no append-only file: what is acknowledged is lost "
                "with it (docs/durability.md)",
                self.where,
            )


def _end_if_cancelled() -> None:
    # The client now and then takes a cancellation for the end of one of its own timeouts; a task
    # that waits for changes for ever would then never end.
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise asyncio.CancelledError
