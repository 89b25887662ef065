"""Tells the service about runs from a thread of its own, so that agents never wait for it.

All calls put a message into one queue and return; the thread sends them in order, the events of a
run in as few requests as possible. If the service cannot be reached, one warning is logged, the
events are kept (``ledger.MAX_PENDING`` per run), and it is tried again every ``retry_s`` seconds. A
service that has lost a workflow (restart, expiry) is given it again. Nothing raises into an agent.
"""

from __future__ import annotations

import atexit
import logging
import os
import threading
import time
import weakref
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import Final, Literal

from kvflow.agent_sdk.client import KVFlowClient
from kvflow.agent_sdk.ledger import Event, Ledger
from kvflow.agent_sdk.settings import ClientSettings
from kvflow.errors import KVFlowError, ServiceError, ServiceUnreachableError

__all__ = ["DEFAULT_RETRY_S", "Reporter", "reporter_for"]

DEFAULT_RETRY_S: Final = 5.0
_EVENTS_PER_REQUEST: Final = 256
_ADMITTED_IN_A_ROW: Final = 1024
_ATTEMPTS: Final = 3
_THREAD_NAME: Final = "kvflow-reporter"
_log: Final = logging.getLogger("kvflow")


@dataclass(frozen=True, slots=True)
class _Ask:
    """A wish that someone waits for.

    ``register``: the service has the workflow, or the error it gave. ``settle``: it has taken all
    that was reported; False if it cannot now. ``close``: the run is over; the answer as for settle.
    """

    kind: Literal["register", "settle", "close"]
    answer: Future[bool]


@dataclass(frozen=True, slots=True)
class _Message:
    ledger: Ledger
    event: Event | None = None
    ask: _Ask | None = None


@dataclass(frozen=True, slots=True)
class _Stop:
    answer: Future[bool]


class Reporter:
    """The line to one service. Thread-safe; survives a fork (the child has a thread of its own).

    Order: the events of one run arrive as they were reported; between runs there is no order.
    """

    def __init__(self, settings: ClientSettings, *, retry_s: float = DEFAULT_RETRY_S) -> None:
        self.settings = settings
        self._retry_s = retry_s
        self._start_lock = threading.RLock()
        self._warned = False
        self._reset()
        _reporters.add(self)

    def _reset(self) -> None:
        # SimpleQueue.put may be called at any point, even from a finalizer that interrupts it.
        self._inbox: SimpleQueue[_Message | _Stop] = SimpleQueue()
        self._thread: threading.Thread | None = None
        self._stopped = False
        self._client: KVFlowClient | None = None
        # The rest belongs to the thread.
        self._ledgers: dict[Ledger, None] = {}
        self._due: dict[Ledger, list[_Ask]] = {}
        self._down = False
        self._retry_at = 0.0

    def announce(self, ledger: Ledger) -> None:
        """The run has begun; the service should have its workflow."""
        self._put(_Message(ledger))

    def report(self, ledger: Ledger, event: Event) -> None:
        self._put(_Message(ledger, event=event))

    def ask(self, ledger: Ledger, kind: Literal["register", "settle", "close"]) -> Future[bool]:
        """See ``_Ask``. While the service is known to be away, ``settle`` and ``close`` answer at
        once; ``register`` tries it."""
        answer: Future[bool] = Future()
        if not self._put(_Message(ledger, ask=_Ask(kind, answer))):
            answer.set_result(False)
        return answer

    def stop(self, timeout_s: float) -> None:
        """Close all runs, send what can be sent within ``timeout_s``, and end the thread."""
        thread = self._thread
        if thread is None or self._stopped:
            return
        self._stopped = True
        answer: Future[bool] = Future()
        self._inbox.put(_Stop(answer))
        with suppress(TimeoutError):
            answer.result(timeout_s)
            thread.join(timeout_s)

    def _put(self, message: _Message) -> bool:
        if self._stopped:
            return False
        self._inbox.put(message)
        if self._thread is None:
            with self._start_lock:
                if self._thread is None:
                    thread = threading.Thread(
                        target=self._work, args=(self._inbox,), name=_THREAD_NAME, daemon=True
                    )
                    try:
                        thread.start()
                    except RuntimeError:  # no more threads, or the interpreter is shutting down
                        self._stopped = True
                        _log.warning("KVFlow: cannot start a thread; steps are not reported")
                        return False
                    self._thread = thread
        return True

    # The thread from here on.

    def _work(self, inbox: SimpleQueue[_Message | _Stop]) -> None:
        logging.getLogger("httpx2").addFilter(_not_from_reporter)
        client = self._client = KVFlowClient(
            self.settings.url,
            api_key=self.settings.api_key,
            client_id=self.settings.client_id,
            timeout_s=self.settings.timeout_s,
        )
        stop: _Stop | None = None
        admitted = 0
        while stop is None or (self._due and not self._down):
            try:
                message = inbox.get(timeout=self._patience_s())
            except Empty:
                message = None
            if isinstance(message, _Stop):
                stop = message
                for ledger in list(self._ledgers):
                    self._admit(_Message(ledger, ask=_Ask("close", Future())))
            elif message is not None:
                self._admit(message)
                admitted += 1
            # What has piled up is taken in first, as it may go into the same request.
            if self._due and (message is None or admitted >= _ADMITTED_IN_A_ROW):
                admitted = 0
                if not self._down or time.monotonic() >= self._retry_at:
                    self._serve(client, next(iter(self._due)))
        client.close()
        _answer(stop.answer, not self._down)

    def _patience_s(self) -> float | None:
        """How long to wait for a message before serving what is due; ``None``: nothing is due."""
        if self._stopped:
            return 0.0
        if not self._due:
            return None
        return max(0.0, self._retry_at - time.monotonic()) if self._down else 0.0

    def _admit(self, message: _Message) -> None:
        ledger, ask = message.ledger, message.ask
        if ledger.closing and ledger not in self._ledgers:
            if ask is not None:  # a step that ended after its run did, and the like
                _answer(ask.answer, False)
            return
        asks = self._due.setdefault(ledger, [])
        self._ledgers[ledger] = None
        if message.event is not None:
            ledger.admit(message.event)
        if ask is None:
            return
        if ask.kind == "close":
            ledger.closing = True
        if ask.kind == "register":
            self._retry_at = 0.0
        asks.append(ask)
        if self._down and ask.kind != "register":
            self._put_off(ledger)

    def _serve(self, client: KVFlowClient, ledger: Ledger) -> None:
        """Bring one run up to date. Its turn passes, whatever happens."""
        asks = self._due.pop(ledger)
        try:
            self._deliver(client, ledger)
        except (ServiceError, ServiceUnreachableError) as outage:
            self._due[ledger] = asks
            self._went_down(outage)
            return
        except Exception as defect:
            _log.exception("KVFlow: a defect in the SDK; run %s goes on", ledger.workflow_id)
            ledger.refused = defect
        else:
            self._came_up()
        if ledger.closing:
            del self._ledgers[ledger]
        for ask in asks:
            if ask.kind == "register" and ledger.refused is not None:
                _fail(ask.answer, ledger.refused)
            else:
                _answer(ask.answer, ledger.refused is None)

    def _deliver(self, client: KVFlowClient, ledger: Ledger) -> None:
        """Send all that is pending, or note that the service refuses this run for good.

        Raises:
            ServiceUnreachableError, ServiceError: the service cannot take anything now.
        """
        if ledger.refused is not None:
            ledger.pending.clear()
            return
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                self._send(client, ledger)
                return
            except ServiceError as error:
                if _is_outage(error):
                    raise
                if attempt == _ATTEMPTS or not ledger.registered:
                    self._refused(ledger, error)
                    return
                if error.status == 404:
                    ledger.lost()
                else:
                    ledger.start_anew()

    def _refused(self, ledger: Ledger, error: ServiceError) -> None:
        ledger.refused = error
        ledger.pending.clear()
        self._warn(
            f"the service refuses workflow {ledger.workflow_id}: {error}. "
            "Your agents run on; this run is not reported any more."
        )

    def _send(self, client: KVFlowClient, ledger: Ledger) -> None:
        if ledger.stale:
            _delete(client, ledger)
            ledger.stale = False
        if not ledger.registered:
            if ledger.closing and not ledger.pending:
                return
            client.create_workflow(ledger.spec)
            ledger.registered = True
        while batch := ledger.batch(_EVENTS_PER_REQUEST):
            client.post_events(ledger.workflow_id, batch)
            ledger.taken(len(batch))
        if ledger.closing and ledger.delete_on_close:
            _delete(client, ledger)

    def _went_down(self, outage: KVFlowError) -> None:
        self._down = True
        self._retry_at = time.monotonic() + self._retry_s
        self._warn(
            f"{outage}{'' if str(outage).endswith('?') else '.'} Your agents run on, without "
            f"workflow-aware caching; the service is tried again every {self._retry_s:g} s."
        )
        for ledger in list(self._due):
            for ask in self._due[ledger]:
                if ask.kind == "register":
                    _fail(ask.answer, outage)
            self._put_off(ledger)

    def _came_up(self) -> None:
        if self._down:
            self._down = False
            _log.info("KVFlow: the service at %s answers again", self.settings.url)

    def _put_off(self, ledger: Ledger) -> None:
        """The service is away: nobody waits for it, and a run that is over is let go."""
        for ask in self._due[ledger]:
            _answer(ask.answer, False)
        self._due[ledger].clear()
        if ledger.closing:
            ledger.pending.clear()
            if not ledger.registered and not ledger.stale:
                del self._due[ledger], self._ledgers[ledger]

    def _warn(self, message: str) -> None:
        """Log a warning the first time in this process, later ones as information."""
        level = logging.INFO if self._warned else logging.WARNING
        self._warned = True
        _log.log(level, "KVFlow: %s", message)

    def after_fork_in_child(self) -> None:
        """The thread did not survive, and the connections are the parent's."""
        _orphans.append(self._client)  # closing or collecting it would warn; it is not ours
        for ledger in self._ledgers:
            ledger.forget()
        self._start_lock = threading.RLock()
        self._reset()


def reporter_for(settings: ClientSettings) -> Reporter:
    """The reporter of this process for a service. One thread and one warning for all workflows."""
    with _registry_lock:
        found = _by_settings.get(settings)
        if found is None or found._stopped:
            found = _by_settings[settings] = Reporter(settings)
        return found


def _delete(client: KVFlowClient, ledger: Ledger) -> None:
    try:
        client.delete_workflow(ledger.workflow_id)
    except ServiceError as error:
        if error.status != 404 or not error.problem:
            raise


def _is_outage(error: ServiceError) -> bool:
    """Whether trying again later may help; no problem details means: not a KVFlow service."""
    return error.status in (401, 403, 408, 429) or error.status >= 500 or not error.problem


def _not_from_reporter(record: logging.LogRecord) -> bool:
    """A line per request is right for the user's own requests, not for our reports."""
    return record.threadName != _THREAD_NAME


def _answer(answer: Future[bool], value: bool) -> None:
    with suppress(InvalidStateError):  # whoever asked has stopped waiting
        answer.set_result(value)


def _fail(answer: Future[bool], error: Exception) -> None:
    with suppress(InvalidStateError):
        answer.set_exception(error)


_registry_lock = threading.Lock()
_by_settings: Final[dict[ClientSettings, Reporter]] = {}
_reporters: Final[weakref.WeakSet[Reporter]] = weakref.WeakSet()
_orphans: Final[list[KVFlowClient | None]] = []


def _stop_all() -> None:
    for reporter in list(_reporters):
        reporter.stop(reporter.settings.timeout_s)


def _after_fork_in_child() -> None:
    global _registry_lock  # noqa: PLW0603  (it may have been held by a thread that is gone)
    _registry_lock = threading.Lock()
    for reporter in list(_reporters):
        reporter.after_fork_in_child()


atexit.register(_stop_all)
os.register_at_fork(after_in_child=_after_fork_in_child)
