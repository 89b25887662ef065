"""A real service on a free loopback port, and a reader of its stream."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import httpx2

from kvflow.protocol import Delta, Heartbeat, Snapshot
from kvflow.server import Service, ServiceSettings, build_service
from kvflow.server.run import ServiceServer, listen

PATIENCE_S = 30.0


class RunningService:
    """A service under uvicorn in a thread of its own."""

    def __init__(self, settings: ServiceSettings, **parts: Any) -> None:
        self.service: Service = build_service(settings, **parts)
        self._server = ServiceServer(self.service, settings)
        self._sockets = listen(settings.host, 0)
        self.url = f"http://127.0.0.1:{self._sockets[0].getsockname()[1]}"
        self._thread = threading.Thread(
            target=self._server.run, kwargs={"sockets": self._sockets}, name="service", daemon=True
        )

    def start(self) -> None:
        self._thread.start()
        eventually(lambda: self._server.started)

    def stop(self) -> None:
        """Shut down as SIGTERM does; fails if that takes too long."""
        self._server.should_exit = True
        self._thread.join(PATIENCE_S)
        assert not self._thread.is_alive(), "the service does not shut down"


@contextmanager
def running_service(settings: ServiceSettings, **parts: Any) -> Iterator[RunningService]:
    service = RunningService(settings, **parts)
    service.start()
    try:
        yield service
    finally:
        service.stop()


class StreamReader:
    """Reads messages off one connection to the stream."""

    def __init__(self, response: httpx2.Response) -> None:
        assert response.status_code == 200
        assert response.headers["content-type"].startswith("text/event-stream")
        self._lines = response.iter_lines()

    def next(self) -> Snapshot | Delta | Heartbeat | None:
        """The next message, or ``None`` if the stream has ended."""
        fields: dict[str, str] = {}
        for line in self._lines:
            if not line:
                break
            name, _, value = line.partition(": ")
            fields[name] = value
        else:
            return None
        models = {"snapshot": Snapshot, "delta": Delta, "heartbeat": Heartbeat}
        message = models[fields["event"]].model_validate_json(fields["data"])
        assert message.seq == int(fields["id"])
        return message


@contextmanager
def stream(client: httpx2.Client, engine_id: str = "e1") -> Iterator[StreamReader]:
    with client.stream("GET", "/v1/engines/stream", params={"engine_id": engine_id}) as response:
        yield StreamReader(response)


def eventually(condition: Callable[[], bool]) -> None:
    """Wait until the condition holds; fails after a time that only a defect needs."""
    deadline_s = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline_s, "did not happen"
        time.sleep(0.01)
