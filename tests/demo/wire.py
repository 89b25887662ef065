"""A server that speaks SGLang's streaming chat format from a script, to test how it is read.

It says nothing about the engine: what the engine does is shown by the demo's own runs.
"""

from __future__ import annotations

import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import islice
from typing import Any, Self


class ChatWire:
    """Answers each request with the next number as text; remembers the bodies it was sent."""

    def __init__(self) -> None:
        self.bodies: list[dict[str, Any]] = []
        self.pause_before_text_s = 0.0
        self.texts: tuple[str, ...] = ("answer ", "{}")
        self.reports_ids = True
        self.reports_usage = True
        self.break_off_after: int | None = None
        self.status = 200
        wire = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                wire.bodies.append(body)
                self.send_response(wire.status)
                self.send_header("Content-Type", "text/event-stream")
                self.send_header("Connection", "close")
                self.send_header("Transfer-Encoding", "chunked")
                self.end_headers()
                if wire.status == 200:
                    for event in islice(wire.events(len(wire.bodies)), wire.break_off_after):
                        self.send_chunk(f"data: {event}\n\n".encode())
                    if wire.break_off_after is not None:
                        return
                self.send_chunk(b"")

            def send_chunk(self, data: bytes) -> None:
                self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")

            def log_message(self, format: str, *args: object) -> None:
                return

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def events(self, number: int) -> Any:
        yield _chunk(choices=[_choice({"role": "assistant", "content": ""})])
        time.sleep(self.pause_before_text_s)
        for text in self.texts:
            yield _chunk(choices=[_choice({"content": text.format(number)})])
        yield _chunk(choices=[_choice({}, "length")])
        extension: dict[str, Any] = {"cached_tokens_details": {"device": 48, "host": 16}}
        if self.reports_ids:
            extension |= {"input_ids": list(range(100)), "output_ids": [[1, 2, number]]}
        yield _chunk(choices=[], sglext=extension)
        usage = {
            "prompt_tokens": 100,
            "completion_tokens": 3,
            "total_tokens": 103,
            "prompt_tokens_details": {"cached_tokens": 64},
        }
        if self.reports_usage:
            yield _chunk(choices=[], usage=usage)
        yield "[DONE]"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def _choice(delta: dict[str, str], finish_reason: str | None = None) -> dict[str, Any]:
    return {"index": 0, "delta": delta, "finish_reason": finish_reason}


def _chunk(**content: Any) -> str:
    base = {"id": "1", "object": "chat.completion.chunk", "created": 1, "model": "m"}
    return json.dumps({**base, **content})
