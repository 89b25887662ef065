from __future__ import annotations

import logging
from collections.abc import Iterator

import httpx2
import pytest

from kvflow.sglang_plugin.service_connection import log_no_requests


@pytest.fixture
def client_logger() -> Iterator[logging.Logger]:
    logger = logging.getLogger("httpx2")
    level = logger.level
    logger.setLevel(logging.NOTSET)
    yield logger
    logger.setLevel(level)


def request() -> None:
    transport = httpx2.MockTransport(lambda _: httpx2.Response(204))
    with httpx2.Client(transport=transport) as client:
        client.post("http://service/v1/engines/e/report")


@pytest.mark.usefixtures("client_logger")
def test_requests_are_not_logged(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        request()
        assert "/report" in caplog.text  # the client does log them
        caplog.clear()

        log_no_requests()
        request()

    assert caplog.text == ""


def test_a_chosen_level_stays(client_logger: logging.Logger) -> None:
    client_logger.setLevel(logging.DEBUG)
    log_no_requests()
    assert client_logger.level == logging.DEBUG
