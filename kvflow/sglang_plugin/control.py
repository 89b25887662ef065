"""Messages to the scheduler processes of one engine, from the service and from the first rank.

They travel through the list that SGLang's first rank broadcasts to all its ranks, so every rank
applies the same message at the same scheduler step. Plain picklable values, nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from kvflow.prefetch import Link

__all__ = [
    "CancelFetch",
    "ControlMessage",
    "FetchAhead",
    "LeaseLost",
    "LoadAhead",
    "Rates",
    "ServiceUpdate",
    "Tick",
    "WorkflowKey",
    "WorkflowUpdate",
]

WorkflowKey = tuple[str, str]
"""``(client_id, workflow_id)``"""


class ControlMessage:
    """Base of everything that is not a request of SGLang's own."""

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class WorkflowUpdate:
    """The present steps-to-execution of all agents of one workflow (``math.inf`` for none).

    ``due_s`` says when those that do not run are expected to, on the first rank's clock; None if
    the service knows of no durations. ``choices`` says how likely agents follow those whose choice
    is to come, by source and target, as far as that was declared.
    """

    key: WorkflowKey
    version: int
    steps_to_execution: Mapping[str, float]
    fixed_prefix_tokens: Mapping[str, int]
    due_s: Mapping[str, float] | None = None
    choices: Mapping[str, Mapping[str, float]] | None = None


@dataclass(frozen=True, slots=True)
class ServiceUpdate(ControlMessage):
    """News from the service; receiving one means that the lease is held.

    ``received_s`` is when, on the first rank's clock; only differences count.

    A snapshot may come in several parts. What was known before and is in none of them is dropped
    with the last part, so weights do not vanish while a snapshot is on its way.
    """

    workflows: tuple[WorkflowUpdate, ...] = ()
    closed: tuple[WorkflowKey, ...] = ()
    snapshot_begins: bool = False
    snapshot_ends: bool = False
    received_s: float = 0.0


@dataclass(frozen=True, slots=True)
class LeaseLost(ControlMessage):
    """Nothing was heard from the service for a whole lease."""


@dataclass(frozen=True, slots=True)
class Rates:
    """What the first rank has measured; None where it has not yet."""

    load: Link | None = None
    fetch: Link | None = None
    prefill: Link | None = None


@dataclass(frozen=True, slots=True)
class Tick(ControlMessage):
    """The first rank's clock, in seconds: the only clock that all ranks share."""

    now_s: float
    rates: Rates = Rates()


@dataclass(frozen=True, slots=True)
class LoadAhead(ControlMessage):
    """Bring the first ``end_tokens`` of an owner's path from host to device.

    ``cause`` is the workflow that is going to need it.
    """

    owner: int
    end_tokens: int
    cause: WorkflowKey


@dataclass(frozen=True, slots=True)
class FetchAhead(ControlMessage):
    """Bring the first ``end_tokens`` of an owner's path from the storage tier to host."""

    owner: int
    end_tokens: int
    cause: WorkflowKey


@dataclass(frozen=True, slots=True)
class CancelFetch(ControlMessage):
    """Nobody is going to need what is being fetched for this owner."""

    owner: int
