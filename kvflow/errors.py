"""Every error KVFlow raises on purpose.

KVFlowError
├── InvalidInputError          a value is wrong; names the field (HTTP 422)
│   └── GraphError             the graph as a whole cannot work (HTTP 422)
├── ForbiddenError             not for this key; names the field (HTTP 403)
├── NotFoundError              (HTTP 404)
│   ├── WorkflowNotFoundError
│   ├── FamilyNotFoundError
│   └── AgentNotFoundError
├── ConflictError              right by itself, wrong in the present state (HTTP 409)
│   ├── WorkflowConflictError
│   └── StepNotRunningError
├── RateLimitedError           more than this client may (HTTP 429)
├── QuotaError                 as much as this client may have (HTTP 429)
├── ServiceError               the service answered with an error; carries the problem details
├── ServiceUnreachableError    the service did not answer
├── UnsupportedEngineError     this SGLang version is not in the compatibility table
└── EnvironmentProblemError    something is missing on this machine; says what to do
"""

from __future__ import annotations

from collections.abc import Sequence

__all__ = [
    "AgentNotFoundError",
    "ConflictError",
    "EnvironmentProblemError",
    "FamilyNotFoundError",
    "ForbiddenError",
    "GraphError",
    "InvalidInputError",
    "KVFlowError",
    "NotFoundError",
    "QuotaError",
    "RateLimitedError",
    "ServiceError",
    "ServiceUnreachableError",
    "StepNotRunningError",
    "UnsupportedEngineError",
    "WorkflowConflictError",
    "WorkflowNotFoundError",
]


class KVFlowError(Exception):
    """Root of all errors KVFlow raises on purpose."""


class InvalidInputError(KVFlowError):
    """A value is wrong.

    Attributes:
        field: path of the offending field, e.g. ``("edges", 2, "target")``.
        problem: what is wrong and what would be right, in one sentence.
    """

    def __init__(self, field: Sequence[str | int], problem: str) -> None:
        self.field = tuple(field)
        self.problem = problem
        super().__init__(f"{field_path(self.field)}: {problem}")


class GraphError(InvalidInputError):
    """The graph as a whole cannot work, e.g. some agent can never run.

    Attributes:
        agent_ids: the agents concerned, in declaration order.
    """

    def __init__(
        self, field: Sequence[str | int], problem: str, agent_ids: Sequence[str] = ()
    ) -> None:
        self.agent_ids = tuple(agent_ids)
        super().__init__(field, problem)


class ForbiddenError(KVFlowError):
    """A value is one that this key may not give.

    Attributes:
        field: path of the field, as in ``InvalidInputError``.
        problem: what is wrong and what would be right, in one sentence.
    """

    def __init__(self, field: Sequence[str | int], problem: str) -> None:
        self.field = tuple(field)
        self.problem = problem
        super().__init__(f"{field_path(self.field)}: {problem}")


class RateLimitedError(KVFlowError):
    """A client does something more often than it may.

    Attributes:
        wait_s: seconds until it may again.
    """

    def __init__(self, problem: str, wait_s: float) -> None:
        self.wait_s = wait_s
        super().__init__(problem)


class QuotaError(KVFlowError):
    """A client has as much of something as it may have at once."""


class NotFoundError(KVFlowError):
    """The thing named does not exist."""


class WorkflowNotFoundError(NotFoundError):
    """No live workflow has this id (never created, deleted, or expired)."""

    def __init__(self, workflow_id: str) -> None:
        self.workflow_id = workflow_id
        super().__init__(
            f"no live workflow has workflow_id {workflow_id!r}: it was never created, "
            "or it was deleted or expired; create it with POST /v1/workflows"
        )


class FamilyNotFoundError(NotFoundError):
    """No order was learned of a family of workflows."""

    def __init__(self, family: str, client_id: str) -> None:
        self.family = family
        self.client_id = client_id
        super().__init__(
            f"no workflow of the family {family!r} of client {client_id!r} has taught an order; "
            "GET /v1/learned lists those that have"
        )


class AgentNotFoundError(NotFoundError):
    """The workflow has no such agent."""

    def __init__(self, agent_id: str, known_agent_ids: Sequence[str]) -> None:
        self.agent_id = agent_id
        self.known_agent_ids = tuple(known_agent_ids)
        known = ", ".join(repr(a) for a in self.known_agent_ids[:20])
        more = ", ..." if len(self.known_agent_ids) > 20 else ""
        super().__init__(f"unknown agent_id {agent_id!r}; this workflow has {known}{more}")


class ConflictError(KVFlowError):
    """Right by itself, but it does not fit the present state."""


class WorkflowConflictError(ConflictError):
    """A live workflow has this id already, with other content."""

    def __init__(self, workflow_id: str, differing: Sequence[str]) -> None:
        self.workflow_id = workflow_id
        self.differing = tuple(differing)
        super().__init__(
            f"workflow_id {workflow_id!r} exists with other content "
            f"(differs in: {', '.join(self.differing)}); delete it first or choose another id"
        )


class StepNotRunningError(ConflictError):
    """A finish was reported for a step that is not running."""

    def __init__(self, agent_id: str, step_id: str | None, problem: str) -> None:
        self.agent_id = agent_id
        self.step_id = step_id
        super().__init__(problem)


class ServiceError(KVFlowError):
    """The KVFlow service answered with an error.

    Attributes:
        status: HTTP status.
        problem: the RFC 9457 problem document, or an empty dict if there was none.
    """

    def __init__(self, status: int, problem: dict[str, object], message: str) -> None:
        self.status = status
        self.problem = problem
        super().__init__(message)


class ServiceUnreachableError(KVFlowError):
    """The KVFlow service did not answer."""


class UnsupportedEngineError(KVFlowError):
    """The installed SGLang is not one this plugin was tried against."""


class EnvironmentProblemError(KVFlowError):
    """Something is missing on this machine.

    Attributes:
        remedy: what the user can do about it, in words.
    """

    def __init__(self, problem: str, remedy: str) -> None:
        self.problem = problem
        self.remedy = remedy
        super().__init__(f"{problem}\n  what to do: {remedy}")


def field_path(field: Sequence[str | int]) -> str:
    """``("edges", 2, "target")`` -> ``edges[2].target``."""
    text = ""
    for part in field:
        if isinstance(part, int):
            text += f"[{part}]"
        else:
            text += f".{part}" if text else part
    return text or "body"
