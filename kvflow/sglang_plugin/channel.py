"""The engine's one outgoing connection to the KVFlow service.

A thread of the first rank reads the service's stream and queues control messages; the scheduler
thread takes them from the queue and hands them to the broadcast. The thread touches nothing else.
"""

from __future__ import annotations

import contextlib
import logging
import math
import random
import socket
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator

import httpx2
from pydantic import ValidationError

from kvflow.protocol import (
    DEFAULT_LEASE_S,
    HEARTBEATS_PER_LEASE,
    ClosedWorkflow,
    Delta,
    Heartbeat,
    Snapshot,
    WorkflowSteps,
)
from kvflow.sglang_plugin.control import (
    ControlMessage,
    LeaseLost,
    ServiceUpdate,
    WorkflowUpdate,
)
from kvflow.sglang_plugin.service_connection import key_headers, log_no_requests, uses_proxies
from kvflow.sglang_plugin.settings import PluginSettings

__all__ = ["ServiceChannel"]

logger = logging.getLogger(__name__)

CONNECT_TIMEOUT_S = 2.0
BACKOFF_S = (0.1, 5.0)
WORKFLOWS_PER_MESSAGE = 100
_HINTS = {
    401: "; set KVFLOW_API_KEY to a key of the service",
    403: "; KVFLOW_API_KEY has to be of the scope engine: kvflow keys create NAME --scope engine",
    404: "; is KVFLOW_SERVICE_URL the address of a KVFlow service?",
}


class ServiceChannel:
    """Reads ``GET /v1/engines/stream`` and keeps the lease.

    Messages have to arrive in sequence; on a gap, or on anything unexpected, the connection is
    made anew and begins with a snapshot. When nothing at all was heard for a lease, one
    ``LeaseLost`` is queued, and the engine is plain LRU until the service is back.
    """

    def __init__(self, service_url: str, settings: PluginSettings) -> None:
        self._settings = settings
        self._url = f"{service_url}/v1/engines/stream"
        self._lease_s = settings.lease_s or DEFAULT_LEASE_S
        self._heard_s: float | None = None
        self._queue: deque[ControlMessage] = deque()
        self._waker, self._woken = socket.socketpair()
        self._waker.setblocking(False)
        self._woken.setblocking(False)
        self._stop = threading.Event()
        self._complained: str | None = None
        self._warned = False
        self._in_snapshot = False
        self._thread = threading.Thread(target=self._run, name="kvflow-channel", daemon=True)

    def start(self) -> None:
        """Connect in the background; never blocks, never raises."""
        log_no_requests()
        self._thread.start()

    def close(self, timeout_s: float = 2.0) -> None:
        """Stop reading. The thread ends at its next message or timeout."""
        self._stop.set()
        self._thread.join(timeout_s)

    def take(self) -> list[ControlMessage]:
        """The next messages, oldest first; an empty list if there are none. Never blocks.

        One call hands out ``WORKFLOWS_PER_MESSAGE`` workflows and the rest of a message at most,
        so taking once a scheduler step keeps a large snapshot from holding up the requests.
        """
        taken: list[ControlMessage] = []
        workflows = 0
        with contextlib.suppress(OSError):
            self._woken.recv(4096)
        while self._queue and workflows < WORKFLOWS_PER_MESSAGE:
            message = self._queue.popleft()
            taken.append(message)
            if isinstance(message, ServiceUpdate):
                workflows += len(message.workflows) + len(message.closed)
        return taken

    @property
    def wake_fd(self) -> int:
        """A file descriptor that is readable while there may be messages to take."""
        return self._woken.fileno()

    def _put(self, messages: Iterable[ControlMessage]) -> None:
        self._queue.extend(messages)
        with contextlib.suppress(OSError):
            self._waker.send(b".")

    def _run(self) -> None:
        delay_s = BACKOFF_S[0]
        while not self._stop.is_set():
            connected_s = time.monotonic()
            try:
                self._read_stream()
                reason = "the service closed the stream"
            except (httpx2.HTTPError, OSError, ValidationError, _StreamError) as error:
                reason = _reason(error)
            except Exception:
                logger.exception("KVFlow channel: unexpected error; reconnecting")
                reason = "unexpected error"
            self._complain(reason)
            if self._heard_s is not None and self._heard_s > connected_s:
                delay_s = BACKOFF_S[0]
            self._wait(delay_s * random.uniform(0.5, 1.0))
            delay_s = min(delay_s * 2, BACKOFF_S[1])
        self._waker.close()
        self._woken.close()

    def _wait(self, delay_s: float) -> None:
        until_s = time.monotonic() + delay_s
        while not self._stop.is_set() and (left_s := until_s - time.monotonic()) > 0:
            self._check_lease()
            self._stop.wait(min(left_s, 0.2))

    def _check_lease(self) -> None:
        if self._heard_s is not None and time.monotonic() - self._heard_s > self._lease_s:
            self._heard_s = None
            self._put([LeaseLost()])
            logger.warning(
                "KVFlow: nothing heard from %s for %.1f s; the engine goes on with plain LRU",
                self._settings.service_url,
                self._lease_s,
            )

    def _check_setting(self, service_lease_s: float) -> None:
        heartbeat_s = service_lease_s / HEARTBEATS_PER_LEASE
        if self._lease_s <= heartbeat_s and not self._warned:
            self._warned = True
            logger.warning(
                "KVFlow: KVFLOW_LEASE_S is %g s, but a service with nothing to tell is silent for "
                "%g s; the lease will be lost each time. Set it to more than that, unset it, or "
                "start the service with --lease-s %g.",
                self._lease_s,
                heartbeat_s,
                self._lease_s,
            )

    def _complain(self, reason: str) -> None:
        if reason != self._complained and not self._stop.is_set():
            self._complained = reason
            logger.warning(
                "KVFlow: no stream from %s (%s); retrying in the background.",
                self._settings.service_url,
                reason,
            )

    def _read_stream(self) -> None:
        silence_s = 0.0
        while silence_s < self._lease_s and not self._stop.is_set():
            # Once more if the service has said that it may be silent for longer than was waited.
            silence_s = self._lease_s
            self._read_connection(silence_s)

    def _read_connection(self, silence_s: float) -> None:
        """Read until the stream ends, or its lease proves longer than ``silence_s``."""
        headers = {"Accept": "text/event-stream", **key_headers(self._settings)}
        timeout = httpx2.Timeout(CONNECT_TIMEOUT_S, read=silence_s)
        with (
            httpx2.Client(timeout=timeout, trust_env=uses_proxies(self._url)) as client,
            client.stream(
                "GET", self._url, headers=headers, params={"engine_id": self._settings.engine_id}
            ) as response,
        ):
            if response.status_code != 200:
                hint = _HINTS.get(response.status_code, "")
                raise _StreamError(f"HTTP {response.status_code}{hint}")
            expected = 0
            for event, data in _events(response.iter_lines()):
                if self._stop.is_set():
                    return
                expected = self._receive(event, data, expected)
                if self._lease_s > silence_s:
                    return

    def _receive(self, event: str, data: str, expected: int) -> int:
        message: Snapshot | Delta | Heartbeat
        if event == "snapshot":
            message = Snapshot.model_validate_json(data)
        elif event == "delta":
            message = Delta.model_validate_json(data)
        elif event == "heartbeat":
            message = Heartbeat.model_validate_json(data)
        else:
            return expected
        if message.seq != expected or (expected == 0) != isinstance(message, Snapshot):
            raise _StreamError(f"gap: got {event} {message.seq}, expected {expected}; resyncing")
        self._heard_s = time.monotonic()
        if isinstance(message, Snapshot):
            self._lease_s = self._settings.lease_s or message.lease_s
            self._check_setting(message.lease_s)
            if self._complained is not None:
                logger.warning("KVFlow: stream from %s is back", self._settings.service_url)
                self._complained = None
            self._in_snapshot = message.more
            self._put(_parts(message.workflows, begins=True, ends=not message.more))
        elif isinstance(message, Delta):
            ends = self._in_snapshot and not message.more
            self._in_snapshot = message.more
            self._put(_parts(message.workflows, message.closed, ends=ends))
        return expected + 1


class _StreamError(Exception):
    """The stream said something that cannot be used."""


def _reason(error: Exception) -> str:
    if isinstance(error, _StreamError):
        return str(error)
    reason = f"{type(error).__name__}: {error}".splitlines()[0]
    if isinstance(error, httpx2.ConnectError | httpx2.ConnectTimeout):
        reason += "; start it with `kvflow serve`, or say where it is with KVFLOW_SERVICE_URL"
    return reason


def _events(lines: Iterator[str]) -> Iterator[tuple[str, str]]:
    """``(event, data)`` of each server-sent event. Comments and unknown fields are skipped."""
    event, data = "message", list[str]()
    for line in lines:
        if not line:
            if data:
                yield event, "\n".join(data)
            event, data = "message", list[str]()
        elif line.startswith("event:"):
            event = line[6:].strip()
        elif line.startswith("data:"):
            data.append(line[5:].removeprefix(" "))


def _parts(
    workflows: list[WorkflowSteps],
    closed: Iterable[ClosedWorkflow] = (),
    *,
    begins: bool = False,
    ends: bool = False,
) -> Iterator[ServiceUpdate]:
    received_s = time.monotonic()
    starts = range(0, max(len(workflows), 1), WORKFLOWS_PER_MESSAGE)
    for start in starts:
        first, last = start == 0, start == starts[-1]
        yield ServiceUpdate(
            workflows=tuple(
                _update(workflow, received_s)
                for workflow in workflows[start : start + WORKFLOWS_PER_MESSAGE]
            ),
            closed=tuple((c.client_id, c.workflow_id) for c in closed) if first else (),
            snapshot_begins=begins and first,
            snapshot_ends=ends and last,
            received_s=received_s,
        )


def _update(workflow: WorkflowSteps, received_s: float) -> WorkflowUpdate:
    times = workflow.expected_s_to_execution
    return WorkflowUpdate(
        key=(workflow.client_id, workflow.workflow_id),
        version=workflow.version,
        steps_to_execution={
            agent_id: math.inf if steps is None else steps
            for agent_id, steps in workflow.steps_to_execution.items()
        },
        fixed_prefix_tokens=workflow.fixed_prefix_tokens,
        due_s=None
        if times is None
        else {
            agent_id: math.inf if seconds is None else received_s + seconds
            for agent_id, seconds in times.items()
        },
        choices=workflow.choice_probabilities,
    )
