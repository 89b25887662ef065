"""A server that speaks SGLang's streaming chat format from a script, to test how it is read.

It says nothing about the engine: what the engine does is shown by the demo's own runs.
"""

from __future__ import annotations

import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self


class ChatWire:
    """Answers each request with the next number as text; remembers the bodies it was sent."""

    def __init__(self) -> None:
        self.bodies: list[dict[str, Any]] = []
        self.pause_before_text_s = 0.0
        self.reports_ids = True
        self.status = 200
        wire = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                wire.bodies.append(body)
                self.send_response(wire.status)
                self.send_header("Content-Type", "text/event-stream")
                self.send_header("Connection", "close")
                self.end_headers()
                if wire.status == 200:
                    for event in wire.events(len(wire.bodies)):
                        self.wfile.write(f"data: {event}\n\n".encode())

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
        yield _chunk(choices=[_choice({"content": "answer "})])
        yield _chunk(choices=[_choice({"content": str(number)})])
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
