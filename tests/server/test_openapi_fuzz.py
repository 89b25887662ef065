"""Every route with what its OpenAPI says it takes, and with what it does not: schemathesis.

No answer is the service's own failure, none has a status or form that is not in the document, and
what the document does not allow is refused. The long form is for ``make soak``.
"""

from __future__ import annotations

import os

import schemathesis
from hypothesis import HealthCheck, Phase, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    negative_data_rejection,
    positive_data_acceptance,
    unsupported_method,
)

from kvflow.server import ServiceSettings, build_service

SOAK = bool(os.environ.get("KVFLOW_SOAK"))
WITHOUT_ENGINE = (
    "/v1/chat/",
    "/v1/completions",
    "/v1/responses",
    "/v1/embeddings",
    "/v1/models",
    "/v1/kv_hints",
    "/ready",
)
# Takes a number that is written as text, and fields that it does not know.
LENIENT = ("/v1/engines/{engine_id}/report",)
EXAMPLES = 400 if SOAK else 25

service = build_service(ServiceSettings(database="none", sweep_interval_s=3600))
# Streams then end after their first message, and with that they can be looked at like all else.
service.streams.shut_down()
service.bus.close()
schema = schemathesis.openapi.from_asgi("/openapi.json", service.app)


@schema.parametrize()
@settings(
    max_examples=EXAMPLES,
    derandomize=not SOAK,
    deadline=None,
    database=None,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)
def test_route(case: schemathesis.Case) -> None:
    # What can't work is refused though each value is right, as an entry agent that is not declared;
    # a body that is not JSON is refused before it matters whether the route takes any; and 503 is
    # an answer where the document says so and the service here is as it says.
    excluded = [positive_data_acceptance, unsupported_method, not_a_server_error]
    if case.path in LENIENT:
        excluded.append(negative_data_rejection)
    answer = case.call_and_validate(excluded_checks=excluded)
    assert answer.status_code < 500 or (
        answer.status_code == 503 and case.path.startswith(WITHOUT_ENGINE)
    )
