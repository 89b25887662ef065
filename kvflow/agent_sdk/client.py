"""The service's REST interface as Python calls, sync and async.

Both clients send the values of :mod:`kvflow.agent_sdk.calls`; only sending differs. Every method
raises ``ServiceUnreachableError`` if there is no answer in time, ``ServiceError`` (with ``status``
and the problem document) if the service refuses, and ``InvalidInputError`` if an argument is
malformed, before anything is sent. Clients may be shared, the sync one between threads, the async
one between the tasks of one event loop.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Iterator, Mapping
from typing import Any, Self, TypedDict, TypeVar

import httpx2

from kvflow.agent_sdk import calls
from kvflow.agent_sdk.calls import AnyWorkflowSpec, Call
from kvflow.agent_sdk.settings import ClientSettings
from kvflow.agent_sdk.tracing import trace_headers
from kvflow.errors import InvalidInputError, ServiceUnreachableError
from kvflow.protocol import EventsResult, StepEvent, StepsView, WorkflowView

__all__ = ["AsyncKVFlowClient", "KVFlowClient"]

T = TypeVar("T")


class KVFlowClient:
    """Sync client. Use as a context manager, or call ``close()``.

    Arguments left out come from ``KVFLOW_SERVICE_URL``, ``KVFLOW_API_KEY`` and
    ``KVFLOW_CLIENT_ID``. ``transport`` replaces the network, for tests.
    """

    def __init__(
        self,
        url: str | None = None,
        *,
        api_key: str | None = None,
        client_id: str | None = None,
        timeout_s: float | None = None,
        transport: httpx2.BaseTransport | None = None,
    ) -> None:
        self.settings = _settings(url, api_key, client_id, timeout_s)
        self._http = httpx2.Client(**_options(self.settings), transport=transport)

    def create_workflow(self, spec: AnyWorkflowSpec) -> WorkflowView:
        """Create a workflow; with the content of a live one of that id, this one is returned."""
        return self._send(calls.create_workflow(spec, self.settings.client_id))

    def get_workflow(self, workflow_id: str) -> WorkflowView:
        """A live workflow with its agents' steps; a ``ServiceError`` of 404 if there is none."""
        return self._send(calls.get_workflow(workflow_id))

    def list_workflows(
        self, *, client_id: str | None = None, page_size: int | None = None
    ) -> Iterator[WorkflowView]:
        """Live workflows in the order of their ids, of one client or of all; pages as it goes."""
        page: str | None = None
        while True:
            answer = self._send(calls.list_workflows(client_id, page, page_size))
            yield from answer.workflows
            page = answer.next_page
            if page is None:
                return

    def delete_workflow(self, workflow_id: str) -> None:
        """End a workflow; a ``ServiceError`` of 404 if it is not live (any more)."""
        self._send(calls.delete_workflow(workflow_id))

    def post_events(
        self, workflow_id: str, events: Iterable[StepEvent | Mapping[str, Any]]
    ) -> EventsResult:
        """Report events in order; all are applied, or none."""
        return self._send(calls.post_events(workflow_id, events))

    def steps(self, workflow_id: str) -> StepsView:
        """Steps-to-execution of every agent."""
        return self._send(calls.steps(workflow_id))

    def health(self) -> None:
        """Return if the service process answers."""
        self._send(calls.health())

    def ready(self) -> bool:
        """Whether the service takes requests now."""
        return self._send(calls.ready())

    def close(self) -> None:
        """Close the connections. The client is of no use afterwards."""
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _send(self, call: Call[T]) -> T:
        try:
            reply = self._http.request(**_request(call))
        except httpx2.RequestError as error:
            raise _unreachable(self.settings, error) from error
        return calls.read_reply(call, str(reply.url), reply.status_code, reply.content)


class AsyncKVFlowClient:
    """Async client. Use as an async context manager, or await ``aclose()``.

    The arguments are those of :class:`KVFlowClient`.
    """

    def __init__(
        self,
        url: str | None = None,
        *,
        api_key: str | None = None,
        client_id: str | None = None,
        timeout_s: float | None = None,
        transport: httpx2.AsyncBaseTransport | None = None,
    ) -> None:
        self.settings = _settings(url, api_key, client_id, timeout_s)
        self._http = httpx2.AsyncClient(**_options(self.settings), transport=transport)

    async def create_workflow(self, spec: AnyWorkflowSpec) -> WorkflowView:
        """Create a workflow; with the content of a live one of that id, this one is returned."""
        return await self._send(calls.create_workflow(spec, self.settings.client_id))

    async def get_workflow(self, workflow_id: str) -> WorkflowView:
        """A live workflow with its agents' steps; a ``ServiceError`` of 404 if there is none."""
        return await self._send(calls.get_workflow(workflow_id))

    async def list_workflows(
        self, *, client_id: str | None = None, page_size: int | None = None
    ) -> AsyncIterator[WorkflowView]:
        """Live workflows in the order of their ids, of one client or of all; pages as it goes."""
        page: str | None = None
        while True:
            answer = await self._send(calls.list_workflows(client_id, page, page_size))
            for workflow in answer.workflows:
                yield workflow
            page = answer.next_page
            if page is None:
                return

    async def delete_workflow(self, workflow_id: str) -> None:
        """End a workflow; a ``ServiceError`` of 404 if it is not live (any more)."""
        await self._send(calls.delete_workflow(workflow_id))

    async def post_events(
        self, workflow_id: str, events: Iterable[StepEvent | Mapping[str, Any]]
    ) -> EventsResult:
        """Report events in order; all are applied, or none."""
        return await self._send(calls.post_events(workflow_id, events))

    async def steps(self, workflow_id: str) -> StepsView:
        """Steps-to-execution of every agent."""
        return await self._send(calls.steps(workflow_id))

    async def health(self) -> None:
        """Return if the service process answers."""
        await self._send(calls.health())

    async def ready(self) -> bool:
        """Whether the service takes requests now."""
        return await self._send(calls.ready())

    async def aclose(self) -> None:
        """Close the connections. The client is of no use afterwards."""
        await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def _send(self, call: Call[T]) -> T:
        try:
            reply = await self._http.request(**_request(call))
        except httpx2.RequestError as error:
            raise _unreachable(self.settings, error) from error
        return calls.read_reply(call, str(reply.url), reply.status_code, reply.content)


def _settings(
    url: str | None, api_key: str | None, client_id: str | None, timeout_s: float | None
) -> ClientSettings:
    settings = ClientSettings.resolve(url, api_key, client_id, timeout_s)
    if settings.off:
        raise InvalidInputError(
            ("service_url",), "is 'off' (KVFLOW_SERVICE_URL), so there is no service to call"
        )
    return settings


class _Options(TypedDict):
    base_url: str
    headers: dict[str, str]
    timeout: float
    trust_env: bool


class _Request(TypedDict):
    method: str
    url: str
    content: bytes | None
    params: Mapping[str, str | int]
    headers: dict[str, str]


def _options(settings: ClientSettings) -> _Options:
    return {
        "base_url": settings.url,
        "headers": settings.headers,
        "timeout": settings.timeout_s,
        # A proxy from the environment cannot reach this machine's loopback.
        "trust_env": not settings.on_loopback,
    }


def _request(call: Call[T]) -> _Request:
    return {
        "method": call.method,
        "url": call.path,
        "content": call.body,
        "params": call.params,
        "headers": trace_headers()
        | ({} if call.body is None else {"Content-Type": "application/json"}),
    }


def _unreachable(settings: ClientSettings, error: httpx2.RequestError) -> ServiceUnreachableError:
    if isinstance(error, httpx2.TimeoutException):
        reason = f"no answer within {settings.timeout_s:g} s"
    else:
        reason = str(error) or type(error).__name__
    return ServiceUnreachableError(
        f"the KVFlow service at {settings.url} did not answer: {reason}; "
        "start it with `kvflow serve`, or say where it is with KVFLOW_SERVICE_URL"
    )
