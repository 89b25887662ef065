"""A link between host and device pool for machines without CUDA, where SGLang's is none.

``torch.cpu``'s streams and events are empty shells, so HiCache copies on the scheduler's thread and
a load can't overlap with anything. Here they have CUDA's meaning: a ``LinkStream`` is a thread that
works through what was submitted to it in order, and an event recorded on it is complete when the
thread gets there. SGLang's transfer engine runs unchanged on top. It submits a load layer by layer
and records an event after each, on which the attention of that layer waits; copies of
``cpu_support.copy_tokens`` queue up if a link is the current stream.

Only host -> device is a link. A copy to the host is still done when the call returns, and need not
wait for loads: SGLang locks the rows a load reads and those it writes until it is acknowledged.

The link can be slowed to a set bandwidth, since between two pools in one memory there is none to
speak of. Nothing here imports torch or SGLang before it is needed.
"""

from __future__ import annotations

import functools
import importlib
import logging
import queue
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final

from kvflow.errors import InvalidInputError

__all__ = [
    "LINK_DELAY_VARIABLE",
    "LINK_MODE_VARIABLE",
    "LINK_VARIABLE",
    "HostStream",
    "LinkDevice",
    "LinkEvent",
    "LinkSettings",
    "LinkStream",
    "current_link",
    "install",
]

LINK_MODE_VARIABLE: Final = "KVFLOW_CPU_LINK"
LINK_VARIABLE: Final = "KVFLOW_CPU_LINK_BYTES_PER_S"
LINK_DELAY_VARIABLE: Final = "KVFLOW_CPU_LINK_DELAY_S"

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class LinkSettings:
    """How fast the link is.

    Attributes:
        bytes_per_s: ``KVFLOW_CPU_LINK_BYTES_PER_S``; None: as fast as memory is copied.
        delay_s: ``KVFLOW_CPU_LINK_DELAY_S``: what passes before each transfer starts.
    """

    bytes_per_s: float | None = None
    delay_s: float = 0.0

    @classmethod
    def from_env(cls, env: Mapping[str, str]) -> LinkSettings | None:
        """Read and check the variables; None if ``KVFLOW_CPU_LINK=sync`` wants no link.

        Raises:
            InvalidInputError: names the variable, what is wrong, and what would be right.
        """
        mode = env.get(LINK_MODE_VARIABLE, "").strip().lower()
        if mode not in ("", "async", "sync"):
            raise InvalidInputError(
                [LINK_MODE_VARIABLE], f"{mode!r} is not known; use 'async' or 'sync'"
            )
        bytes_per_s = _number(env, LINK_VARIABLE)
        if bytes_per_s is not None and bytes_per_s <= 0:
            raise InvalidInputError(
                [LINK_VARIABLE],
                f"{env[LINK_VARIABLE]!r} is not a positive number of bytes per second; "
                "give e.g. 2e9, or leave it unset for a link that is not slowed",
            )
        delay_s = _number(env, LINK_DELAY_VARIABLE) or 0.0
        if delay_s < 0:
            raise InvalidInputError(
                [LINK_DELAY_VARIABLE],
                f"{env[LINK_DELAY_VARIABLE]!r} is not a number of seconds; give e.g. 0.05",
            )
        return None if mode == "sync" else cls(bytes_per_s, delay_s)


def _number(env: Mapping[str, str], name: str) -> float | None:
    """A finite number; None where the variable is unset or empty, -1 where it is none."""
    text = env.get(name, "").strip()
    if not text:
        return None
    try:
        value = float(text)
    except ValueError:
        return -1.0
    return value if abs(value) < float("inf") else -1.0


@dataclass(slots=True, eq=False)
class _Recording:
    """One ``record`` of an event: complete when the stream gets there."""

    done: threading.Event = field(default_factory=threading.Event)
    time_s: float = 0.0
    error: BaseException | None = None

    def complete(self, time_s: float, error: BaseException | None = None) -> None:
        self.time_s, self.error = time_s, error
        self.done.set()

    def is_done(self) -> bool:
        if not self.done.is_set():
            return False
        if self.error is not None:
            raise RuntimeError(
                "a load from the host tier failed; the KV on the device isn't what it should be"
            ) from self.error
        return True

    def wait(self) -> None:
        self.done.wait()
        self.is_done()


class LinkEvent:
    """An event with CUDA's meaning.

    ``record`` marks a place in a stream, here and now incomplete; what asks for the event means
    its latest ``record``, and ``wait`` the one before the call. An event never recorded is
    complete. Streams that aren't links have nothing under way, so what is recorded on them is
    complete at once.

    After a copy failed, all that is recorded on its link raises RuntimeError in ``query``,
    ``synchronize`` and ``wait``, with the failure as cause: as with CUDA, what the device holds is
    undefined from there on. It completes nonetheless, so nothing waits for ever.

    Thread-safe.
    """

    __slots__ = ("_recording",)

    def __init__(self, enable_timing: bool = False) -> None:
        del enable_timing  # all events are timed
        self._recording: _Recording | None = None

    def record(self, stream: Any = None) -> None:
        """Complete once all that was submitted so far is done; ``stream``: None, the current."""
        self._recording = _Recording()
        link = _link_of(stream)
        if link is None:
            self._recording.complete(time.perf_counter())
        else:
            link.complete_in_turn(self._recording)

    def query(self) -> bool:
        """Whether it is complete. Never blocks."""
        recording = self._recording
        return recording is None or recording.is_done()

    def synchronize(self) -> None:
        """Block this thread until it is complete."""
        recording = self._recording
        if recording is not None:
            recording.wait()

    def wait(self, stream: Any = None) -> None:
        """Make ``stream`` (None: the current one) wait; blocks this thread unless it's a link."""
        link = _link_of(stream)
        if link is None:
            self.synchronize()
        else:
            link.wait_event(self)

    def elapsed_time(self, end: LinkEvent) -> float:
        """Milliseconds from this event to ``end``.

        Raises:
            RuntimeError: one of them isn't complete, or was never recorded.
        """
        times_s: list[float] = []
        for recording in (self._recording, end._recording):
            if recording is None or not recording.done.is_set():
                raise RuntimeError("both events have to be complete to tell the time between them")
            times_s.append(recording.time_s)
        return (times_s[1] - times_s[0]) * 1e3


class HostStream:
    """A stream where work is done by the thread that asks for it, before the call returns."""

    def wait_event(self, event: LinkEvent) -> None:
        """Block this thread until the event is complete."""
        event.synchronize()

    def wait_stream(self, stream: Any) -> None:
        """Block this thread until a link has done what was submitted to it."""
        if isinstance(stream, LinkStream):
            stream.synchronize()

    def synchronize(self) -> None:
        """Everything is done already."""


class LinkStream:
    """One direction of a link: a daemon thread that copies what was submitted, first come first.

    A copy counts from when it was submitted or when the one before it was through, whichever is
    later, and takes its bytes over the bandwidth. So the bandwidth holds over a busy time as a
    whole: where one copy (or sleep) takes too long, the next ones sleep less. The thread sleeps and
    never spins; torch releases the interpreter lock during a copy.

    Submitting never blocks. Any thread may submit.
    """

    def __init__(
        self,
        settings: LinkSettings,
        clock: Callable[[], float] = time.perf_counter,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._settings = settings
        self._clock = clock
        self._sleep = sleep
        self._jobs: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._free_at_s = float("-inf")
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._work, name="kvflow-cpu-link", daemon=True)
        self._start_single_threaded()

    def begin_transfer(self) -> None:
        """What is submitted from now on is another transfer: the fixed delay comes first."""
        if self._settings.delay_s:
            submitted_s = self._clock()
            self._jobs.put(lambda: self._occupy(submitted_s, self._settings.delay_s))

    def copy(self, run: Callable[[], None], size_bytes: int) -> None:
        """Submit a copy. If it raises, no later one runs and all events recorded later raise."""
        submitted_s = self._clock()

        def job() -> None:
            if self._error is not None:
                return
            run()
            if self._settings.bytes_per_s is not None:
                self._occupy(submitted_s, size_bytes / self._settings.bytes_per_s)

        self._jobs.put(job)

    def complete_in_turn(self, recording: _Recording) -> None:
        """Submit the completion of an event's recording."""
        self._jobs.put(lambda: recording.complete(self._clock(), self._error))

    def wait_event(self, event: LinkEvent) -> None:
        """What is submitted later starts after the event's latest recording is complete."""
        recording = event._recording
        if recording is None:
            return

        def job() -> None:
            if not recording.is_done():
                recording.wait()
                self._free_at_s = max(self._free_at_s, self._clock())

        self._jobs.put(job)

    def wait_stream(self, stream: Any) -> None:
        """What is submitted later starts after what is under way on ``stream``, if it's a link."""
        if isinstance(stream, LinkStream):
            event = LinkEvent()
            event.record(stream)
            self.wait_event(event)

    def synchronize(self) -> None:
        """Block this thread until all that was submitted is done.

        Raises:
            RuntimeError: a copy failed.
        """
        event = LinkEvent()
        event.record(self)
        event.synchronize()

    def close(self) -> None:
        """End the thread after what was submitted. Process exit doesn't need it."""
        self._jobs.put(None)
        self._thread.join()

    def _occupy(self, earliest_s: float, duration_s: float) -> None:
        self._free_at_s = max(self._free_at_s, earliest_s) + duration_s
        rest_s = self._free_at_s - self._clock()
        if rest_s > 0:
            self._sleep(rest_s)

    def _start_single_threaded(self) -> None:
        """Start the thread with a torch that uses no more threads for it.

        The number is kept per thread, but the last one set is also what threads that come to
        torch later begin with; that is put back.
        """
        import torch

        threads = torch.get_num_threads()
        ready = threading.Event()
        self._jobs.put(ready.set)
        self._thread.start()
        ready.wait()
        torch.set_num_threads(threads)

    def _work(self) -> None:
        import torch

        torch.get_num_threads()  # takes the number set by others, which must not come later
        torch.set_num_threads(1)
        with torch.inference_mode():  # pools made under it can't be written to outside it
            while (job := self._jobs.get()) is not None:
                self._do(job)

    def _do(self, job: Callable[[], None]) -> None:
        try:
            job()
        except Exception as error:
            logger.exception("kvflow_cpu: a copy from the host pool failed")
            self._error = self._error or error


AnyStream = HostStream | LinkStream

_HOST: Final = HostStream()


class _Current(threading.local):
    stream: AnyStream = _HOST


_current: Final = _Current()


class LinkDevice:
    """What HiCache's transfer code takes from a torch device module."""

    __name__ = "kvflow.engine.cpu_link"
    Event = LinkEvent
    Stream = HostStream

    @staticmethod
    def current_stream() -> AnyStream:
        """The stream chosen by ``stream`` in this thread; else one that is done at once."""
        return _current.stream

    @staticmethod
    @contextmanager
    def stream(chosen: AnyStream) -> Iterator[None]:
        """Make it this thread's current stream. For a link, a transfer begins here."""
        before = _current.stream
        _current.stream = chosen
        if isinstance(chosen, LinkStream):
            chosen.begin_transfer()
        try:
            yield
        finally:
            _current.stream = before


def current_link() -> LinkStream | None:
    """The link that is this thread's current stream; None: what is called is done at once."""
    return _link_of(None)


def _link_of(stream: Any) -> LinkStream | None:
    """``stream``, or the current one for None, if it is a link; torch's own streams are not."""
    chosen = _current.stream if stream is None else stream
    return chosen if isinstance(chosen, LinkStream) else None


def install(settings: LinkSettings) -> bool:
    """Give every transfer engine that is made from now on a link for its loads. Idempotent.

    Returns:
        Whether this SGLang has such an engine (0.5.18 and later do). Without it nothing
        is changed and copies stay synchronous.
    """
    try:
        transfer = importlib.import_module("sglang.srt.mem_cache.l2_transfer")
    except ModuleNotFoundError:
        logger.info("kvflow_cpu: this SGLang's loads from the host pool stay synchronous")
        return False
    controller = importlib.import_module("sglang.srt.managers.cache_controller")
    for module in (transfer, controller):
        module.device_module = LinkDevice()  # type: ignore[attr-defined]
    _link_engines(transfer.L2TransferEngine, settings)
    logger.info("kvflow_cpu: loads from the host pool run in the background, %s", settings)
    return True


def _link_engines(engine: Any, settings: LinkSettings) -> None:
    original: Callable[..., None] = engine.__init__
    if getattr(original, "kvflow_linked", False):
        return

    @functools.wraps(original)
    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        self.host_to_device_stream = LinkStream(settings)

    init.kvflow_linked = True  # type: ignore[attr-defined]
    engine.__init__ = init
