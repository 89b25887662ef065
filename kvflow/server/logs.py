"""The service's log: lines for people, or JSON objects for a collector.

All loggers of the process are covered, uvicorn's included. Lines about a request name it
(``kvflow.server.request_log``). What looks like a key is masked, whoever logs it.
"""

from __future__ import annotations

import json
import logging
import re
import sys
import time
from typing import Any, Final, Literal

from kvflow.server.request_log import request_facts

__all__ = ["JsonFormatter", "LogFormat", "TextFormatter", "configure_logging", "masked"]

LogFormat = Literal["text", "json"]

_SECRETS: Final = re.compile(
    r"(\bbearer\s+|\b(?:api[-_]?key|authorization|password|token)[\"']?\s*[=:]\s*[\"']?(?:bearer\s+)?)"
    r"(?!\*|None\b)[^\s\"',;&]+",
    re.IGNORECASE,
)
_URL_PASSWORD: Final = re.compile(r"(://[^\s/:@]*:)[^\s/@]+(?=@)")
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f\x85\u2028\u2029]")
# They tell every request of ours to an engine, which is what the debug level is for.
_CHATTY: Final = ("httpx2", "httpcore2", "httpx", "httpcore")


def configure_logging(log_format: LogFormat, level: str) -> None:
    """Log to stderr from ``level`` (``debug``, ``info``, ...) on. A process that already has
    handlers on its root logger keeps them."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if log_format == "json" else TextFormatter())
    logging.basicConfig(level=level.upper(), handlers=[handler])
    if level != "debug":
        for name in _CHATTY:
            logging.getLogger(name).setLevel(logging.WARNING)


def masked(text: str) -> str:
    """The text without what follows ``Bearer``, ``api_key=``, ``password:`` and the like, and
    without the password of a URL."""
    return _URL_PASSWORD.sub(r"\1***", _SECRETS.sub(r"\1***", text))


class TextFormatter(logging.Formatter):
    """``time level logger: message [request_id=... workflow_id=...]``, an exception below it.

    A message is one line whatever was quoted in it, so that nobody can forge another.
    """

    def format(self, record: logging.LogRecord) -> str:
        line = f"{self.formatTime(record)} {record.levelname} {record.name}: {record.getMessage()}"
        if facts := request_facts():
            line += " [" + " ".join(f"{name}={value}" for name, value in facts.items()) + "]"
        line = _CONTROL.sub(lambda found: repr(found[0])[1:-1], masked(line))
        if record.exc_info:
            line += "\n" + masked(self.formatException(record.exc_info))
        return line


class JsonFormatter(logging.Formatter):
    """One JSON object a line: ``time`` (UTC), ``level``, ``logger``, ``message``, of a request
    ``request_id``, ``workflow_id``, ``client_id``, ``trace_id`` and ``span_id`` as far as there
    are any, and ``exception``. Uvicorn's access log has ``peer``, ``method``, ``path``, ``status``.
    """

    def format(self, record: logging.LogRecord) -> str:
        at = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        fields: dict[str, Any] = {
            "time": f"{at}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": masked(record.getMessage()),
            **request_facts(),
            **_access(record),
        }
        if record.exc_info:
            fields["exception"] = masked(self.formatException(record.exc_info))
        # ASCII, as what is quoted from a request may be text that UTF-8 cannot encode.
        return json.dumps(fields)


def _access(record: logging.LogRecord) -> dict[str, Any]:
    if record.name != "uvicorn.access" or not isinstance(record.args, tuple):
        return {}
    if len(record.args) != 5:
        return {}
    peer, method, path, _, status = record.args
    return {"peer": peer, "method": method, "path": masked(str(path)), "status": status}
