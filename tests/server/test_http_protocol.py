"""A head without an end is not read without an end."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from kvflow.server import ServiceSettings
from kvflow.server.http_protocol import MAX_HEAD_BYTES
from tests.server.running import PATIENCE_S, RunningService, running_service


@pytest.fixture(scope="module")
def service() -> Iterator[RunningService]:
    with running_service(ServiceSettings()) as service:
        yield service


def connected(service: RunningService) -> socket.socket:
    host, port = service.url.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=PATIENCE_S)


@pytest.mark.parametrize("piece", [b"x" * 1000, b"x: y\r\n" * 200], ids=["one header", "many"])
def test_a_head_without_an_end(service: RunningService, piece: bytes) -> None:
    with connected(service) as connection:
        connection.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\nX-Long: ")
        sent = 0
        try:
            while sent < 20 * MAX_HEAD_BYTES:
                connection.sendall(piece)
                sent += len(piece)
            answer = connection.recv(4096)
        except (BrokenPipeError, ConnectionResetError):
            answer = b""  # it hung up while we were sending

    assert answer == b"" or b" 400 " in answer.split(b"\r\n")[0]


def test_requests_on_one_connection_count_apart(service: RunningService) -> None:
    with connected(service) as connection:
        reader = connection.makefile("rb")
        for _ in range(10):
            long = b"y" * 20_000
            connection.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\nX-Long: " + long + b"\r\n\r\n")
            assert b" 200 " in reader.readline()
            while (line := reader.readline()) != b"\r\n":
                if line.lower().startswith(b"content-length:"):
                    length = int(line.split(b":")[1])
            reader.read(length)


def test_a_long_body_is_not_a_head(service: RunningService) -> None:
    body = b'{"agents": [' + b" " * (4 * MAX_HEAD_BYTES)
    with connected(service) as connection:
        connection.sendall(
            b"POST /v1/workflows HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
            b"Content-Length: " + str(len(body)).encode() + b"\r\n\r\n" + body
        )
        assert b" 400 Bad Request" in connection.recv(4096)  # it is no JSON, and was read
