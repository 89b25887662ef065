"""A local HTTP server with the OpenAI routes, which keeps the bodies it was sent."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

WORDS = ["Hello", " from", " the", " engine"]


class RecordingEngine(ThreadingHTTPServer):
    daemon_threads = False
    # With the usual five, a connection more is made only when the client asks again a second later.
    request_queue_size = 64

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.requests: list[tuple[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.fail_next = 0
        """How many of the next requests are answered with 500."""

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"

    @property
    def bodies(self) -> list[Any]:
        return [body for _, body in self.requests]


@contextmanager
def recording_engine() -> Iterator[RecordingEngine]:
    engine = RecordingEngine()
    thread = threading.Thread(target=engine.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield engine
    finally:
        engine.shutdown()
        thread.join()
        engine.server_close()


class _Handler(BaseHTTPRequestHandler):
    server: RecordingEngine

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.requests.append((self.path, body))
        self.server.headers.append({name.lower(): value for name, value in self.headers.items()})
        if self.server.fail_next:
            self.server.fail_next -= 1
            self._answer(500, "application/json", b'{"error": {"message": "try again"}}')
        elif body.get("stream"):
            events = [json.dumps(_chunk(self.path, word)) for word in WORDS] + ["[DONE]"]
            stream = "".join(f"data: {event}\n\n" for event in events)
            self._answer(200, "text/event-stream", stream.encode())
        else:
            self._answer(200, "application/json", json.dumps(_whole(self.path)).encode())

    def _answer(self, status: int, content_type: str, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


def _whole(path: str) -> dict[str, Any]:
    text = "".join(WORDS)
    common = {"id": "1", "created": 0, "model": "m"}
    if "chat" in path:
        choice = {"index": 0, "finish_reason": "stop"}
        message = {"role": "assistant", "content": text}
        return {**common, "object": "chat.completion", "choices": [{**choice, "message": message}]}
    if path.endswith("/completions"):
        choice = {"index": 0, "finish_reason": "stop", "text": text}
        return {**common, "object": "text_completion", "choices": [choice]}
    if path.endswith("/embeddings"):
        data = [{"object": "embedding", "index": 0, "embedding": [0.5]}]
        return {"object": "list", "model": "m", "data": data, "usage": {}}
    return {**common, "object": "response", "output": []}


def _chunk(path: str, word: str) -> dict[str, Any]:
    common = {"id": "1", "created": 0, "model": "m"}
    if "chat" in path:
        choice = {"index": 0, "delta": {"role": "assistant", "content": word}}
        return {**common, "object": "chat.completion.chunk", "choices": [choice]}
    return {**common, "object": "text_completion", "choices": [{"index": 0, "text": word}]}
