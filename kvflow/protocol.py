"""The wire formats shared by service, SDK and engine plugin.

Three surfaces:

* the REST bodies of ``/v1/workflows`` (``WorkflowSpec``, ``StepEvent``, ``StepsView`` ...);
* the engines' stream ``GET /v1/engines/stream``: server-sent events whose ``event`` field is one of
  ``snapshot``, ``delta``, ``heartbeat`` (``Snapshot``, ``Delta``, ``Heartbeat``);
* the metadata a request carries to the engine, ``custom_params = {"kvflow": RequestMetadata}``,
  with in-band steps beside it: ``custom_params["kvflow_steps"] = {agent_id: steps}``.

``steps_to_execution`` is an integer, or ``null`` for an agent that cannot run (again).
"""

from __future__ import annotations

import re
from typing import Annotated, Final, Literal, Self

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

__all__ = [
    "CUSTOM_PARAMS_KEY",
    "DEFAULT_CLIENT_ID",
    "DEFAULT_LEASE_S",
    "DEFAULT_TTL_S",
    "HEARTBEATS_PER_LEASE",
    "MAX_IDENTIFIER_CHARS",
    "MAX_REPORTED_AGENTS",
    "AgentSpec",
    "AgentView",
    "ClosedWorkflow",
    "Delta",
    "EdgeSpec",
    "CacheTier",
    "EngineAway",
    "EngineList",
    "EngineReport",
    "EngineSummary",
    "EngineTotals",
    "EngineView",
    "EventsResult",
    "FieldProblem",
    "FirstTokenTimes",
    "Health",
    "Heartbeat",
    "Identifier",
    "LearnedGraph",
    "LearnedList",
    "LearnedSummary",
    "LearnedWorkflowSpec",
    "Problem",
    "PrefixPlacement",
    "RecentFigures",
    "ReportReceipt",
    "RequestMetadata",
    "STEPS_PARAMS_KEY",
    "TRACEPARENT",
    "Snapshot",
    "StepEvent",
    "StepsView",
    "WorkflowList",
    "WorkflowSpec",
    "WorkflowSteps",
    "WorkflowView",
]

CUSTOM_PARAMS_KEY: Final = "kvflow"
STEPS_PARAMS_KEY: Final = "kvflow_steps"
TRACEPARENT: Final = re.compile(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")
"""W3C trace context: version, trace, span, flags."""
DEFAULT_CLIENT_ID: Final = "default"
DEFAULT_TTL_S: Final = 600.0
DEFAULT_LEASE_S: Final = 10.0
HEARTBEATS_PER_LEASE: Final = 3
"""How often a service with nothing to tell says that it is there, at least."""
MAX_TTL_S: Final = 30 * 24 * 3600.0
MAX_IDENTIFIER_CHARS: Final = 256

Identifier = Annotated[
    str,
    Field(
        min_length=1,
        max_length=MAX_IDENTIFIER_CHARS,
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._:@-]*$",
        description="Letters, digits and . _ : @ - ; starts with a letter or digit.",
    ),
]
TtlSeconds = Annotated[float, Field(gt=0, le=MAX_TTL_S, allow_inf_nan=False)]
TokenCount = Annotated[int, Field(ge=0, le=10_000_000)]
Seconds = Annotated[float, Field(ge=0, le=MAX_TTL_S, allow_inf_nan=False)]
SecondsMap = dict[str, Annotated[float, Field(ge=0)] | None]
StepsMap = dict[str, Annotated[int, Field(ge=0)] | None]
ChoicesMap = dict[str, dict[str, Annotated[float, Field(ge=0, le=1)]]]


def _is_unset(value: object) -> bool:
    return value is None


def _is_false(value: object) -> bool:
    return value is False


class _Strict(BaseModel):
    """A body we receive: unknown fields are refused, so that a typo is not silently ignored."""

    model_config = ConfigDict(extra="forbid")


class _Lenient(BaseModel):
    """A message between our own parts: unknown fields are ignored, so that versions can differ."""

    model_config = ConfigDict(extra="ignore")


class AgentSpec(_Strict):
    """One agent (node) of an Agent Step Graph."""

    agent_id: Identifier
    join: Literal["all", "any"] = Field(
        default="all",
        description="all: waits for every incoming edge; any: the first one is enough.",
    )
    fixed_prefix_tokens: Annotated[int, Field(ge=0, le=10_000_000)] | None = Field(
        default=None,
        description="Length in tokens of the prompt part common to all calls; inferred if absent.",
    )
    expected_duration_s: Seconds | None = Field(
        default=None,
        exclude_if=_is_unset,
        description="From a run's start to its finish; learned from events if absent.",
    )


class EdgeSpec(_Strict):
    """A directed edge: ``target`` can run after ``source`` has finished."""

    source: Identifier
    target: Identifier
    kind: Literal["always", "choice"] = Field(
        default="always",
        description="always: every finish leads here; choice: one of the sibling choices is taken.",
    )
    probability: Annotated[float, Field(gt=0, le=1)] | None = Field(
        default=None,
        exclude_if=_is_unset,
        description="Of a choice: how likely it is taken. Those of one source add up to at most 1.",
    )
    expected_duration_s: Seconds | None = Field(
        default=None,
        exclude_if=_is_unset,
        description="From the source's finish to the target's start, as of a tool; "
        "learned from events if absent.",
    )
    max_iterations: Annotated[int, Field(ge=1, le=1_000_000)] | None = Field(
        default=None,
        exclude_if=_is_unset,
        description="How many starts can come by this edge in a workflow's life: of a loop's back "
        "edge, how often it is gone round at most. Any number if absent.",
    )


class WorkflowSpec(_Strict):
    """Body of ``POST /v1/workflows``."""

    workflow_id: Identifier | None = Field(default=None, description="Made up if absent.")
    client_id: Identifier = DEFAULT_CLIENT_ID
    name: Annotated[str, Field(max_length=256)] | None = None
    ttl_s: TtlSeconds = Field(
        default=DEFAULT_TTL_S, description="The workflow expires after this long without events."
    )
    agents: Annotated[list[AgentSpec], Field(min_length=1, max_length=10_000)]
    edges: Annotated[list[EdgeSpec], Field(max_length=100_000)] = []
    entry: Annotated[list[Identifier], Field(min_length=1, max_length=10_000)]


class LearnedWorkflowSpec(_Strict):
    """Body of ``POST /v1/workflows`` for a workflow that declares nothing."""

    learn: Literal[True] = Field(description="Take any agent's steps, and learn their order.")
    workflow_id: Identifier | None = Field(default=None, description="Made up if absent.")
    client_id: Identifier = DEFAULT_CLIENT_ID
    name: Annotated[str, Field(max_length=256)] | None = Field(
        default=None,
        description="Workflows of one name learn from each other; without one, those that begin "
        "with the same agent do.",
    )
    ttl_s: TtlSeconds = Field(
        default=DEFAULT_TTL_S, description="The workflow expires after this long without events."
    )


class LearnedSummary(_Lenient):
    """What was learned of one family of workflows, in short."""

    family: str = Field(description="Their name, or from:<agent> if they have none.")
    client_id: str
    agents: list[str]
    score: float = Field(
        description="Mean probability that had been given to the agents that then started."
    )
    scored: int = Field(description="Starts that were scored.")
    used: bool = Field(description="Whether engines are told of the predictions.")


class LearnedList(_Lenient):
    """``GET /v1/learned``."""

    families: list[LearnedSummary]


class LearnedGraph(_Lenient):
    """``GET /v1/learned/{family}``: a body for ``POST /v1/workflows``."""

    client_id: str
    name: str | None
    agents: list[AgentSpec]
    edges: list[EdgeSpec]
    entry: list[str]


class AgentView(_Lenient):
    """An agent and its present state."""

    agent_id: str
    join: Literal["all", "any"]
    fixed_prefix_tokens: int | None
    expected_duration_s: float | None = Field(default=None, exclude_if=_is_unset)
    running: int = Field(description="Runs of this agent that have started and not finished.")
    steps_to_execution: int | None


class WorkflowView(_Lenient):
    """A live workflow, as ``POST`` and ``GET`` answer it."""

    workflow_id: str
    client_id: str
    name: str | None
    ttl_s: float
    expires_in_s: float
    version: int = Field(description="Grows by one with every applied event; 0 when just created.")
    agents: list[AgentView]
    edges: list[EdgeSpec]
    entry: list[str]
    steps_started: int
    mispredictions: int = Field(description="Starts of agents that held no mark.")
    learn: bool = Field(
        default=False,
        exclude_if=_is_false,
        description="It declares nothing: agents, edges and entry are what was learned. "
        "Absent if it is declared.",
    )


class WorkflowList(_Lenient):
    """``GET /v1/workflows``."""

    workflows: list[WorkflowView]
    next_page: str | None = Field(default=None, description="Pass as ?page= for the rest.")


def _checked_traceparent(value: str) -> str:
    if TRACEPARENT.fullmatch(value) is None:
        raise ValueError("must be a W3C traceparent: 00-<32 hex digits>-<16>-<2>, in lower case")
    return value


Traceparent = Annotated[str, AfterValidator(_checked_traceparent)]


class StepEvent(_Strict):
    """An agent's step started or finished."""

    type: Literal["step_started", "step_finished"]
    agent_id: Identifier
    step_id: Identifier | None = Field(
        default=None,
        description="Names this run of the agent, for agents that run in parallel with themselves; "
        "a repeated event with the same step_id is ignored.",
    )
    prompt_tokens: TokenCount | None = Field(
        default=None,
        description="With step_finished: length of the step's prompt. These three are recorded "
        "(kvflow serve --record) and used for nothing else.",
    )
    cached_tokens: TokenCount | None = Field(
        default=None, description="With step_finished: how much of the prompt the engine had."
    )
    output_tokens: TokenCount | None = Field(
        default=None, description="With step_finished: length of the answer."
    )
    traceparent: Traceparent | None = Field(
        default=None,
        description="W3C trace context of the step's span; the service's spans go below it.",
    )

    @model_validator(mode="after")
    def _counts_are_known_at_the_end(self) -> Self:
        for name in ("prompt_tokens", "cached_tokens", "output_tokens"):
            if self.type == "step_started" and getattr(self, name) is not None:
                raise ValueError(f"{name} goes with step_finished, as it is not known before")
        if (self.cached_tokens or 0) > (self.prompt_tokens or self.cached_tokens or 0):
            raise ValueError(
                f"cached_tokens is {self.cached_tokens}, more than the {self.prompt_tokens} of "
                "the prompt they are a part of"
            )
        return self


class EventsResult(_Lenient):
    """Answer to ``POST /v1/workflows/{workflow_id}/events``."""

    version: int
    applied: int
    duplicates: int
    mispredictions: int
    steps_to_execution: StepsMap


class StepsView(_Lenient):
    """``GET /v1/workflows/{workflow_id}/steps``."""

    version: int
    steps_to_execution: StepsMap
    expected_s_to_execution: SecondsMap | None = Field(
        default=None,
        exclude_if=_is_unset,
        description="Seconds until each agent is expected to run; null for one that cannot. "
        "Absent if no durations are known, neither declared nor learned.",
    )


class Problem(_Lenient):
    """RFC 9457 problem details."""

    model_config = ConfigDict(extra="allow")

    type: str
    title: str
    status: int
    detail: str
    errors: list[FieldProblem] = []


class FieldProblem(_Lenient):
    """One wrong field: where, what is wrong, and what would be right."""

    field: str
    problem: str


class WorkflowSteps(_Lenient):
    """One workflow on the engines' stream: all its agents, so that a message stands alone."""

    client_id: str
    workflow_id: str
    version: int
    ttl_s: float
    steps_to_execution: StepsMap
    fixed_prefix_tokens: dict[str, int] = {}
    expected_s_to_execution: SecondsMap | None = Field(
        default=None,
        exclude_if=_is_unset,
        description="Seconds until each agent is expected to run, when this was sent; null for one "
        "that cannot. Absent if no durations are known.",
    )
    choice_probabilities: ChoicesMap | None = Field(
        default=None,
        exclude_if=_is_unset,
        description="Of agents that run or whose choice has yet to be made, and that have declared "
        "probabilities: how likely each agent follows. Absent if there are none.",
    )


class ClosedWorkflow(_Lenient):
    """A workflow that was deleted or has expired (its id may be in use again, see ``Delta``)."""

    client_id: str
    workflow_id: str


class Snapshot(_Lenient):
    """First message on a stream: everything that is live. Replaces all that was known before.

    With ``more`` set, what is live did not fit into one message of moderate size: the rest follows
    at once in deltas, and the first message with ``more`` false ends it. Until then a receiver may
    keep using what it knew of workflows it has not seen yet.
    """

    seq: int
    lease_s: float
    workflows: list[WorkflowSteps]
    more: bool = False


class Delta(_Lenient):
    """What changed since the message before; ``seq`` is one more than that message's.

    A receiver that sees any other ``seq`` reconnects and takes the new snapshot. ``closed`` is
    applied before ``workflows``: a workflow in both was deleted and created anew (its ``version``
    starts at 0 again). ``more``: the first state is still not complete, see ``Snapshot``.
    """

    seq: int
    workflows: list[WorkflowSteps] = []
    closed: list[ClosedWorkflow] = []
    more: bool = False


class Heartbeat(_Lenient):
    """Nothing changed, the service is alive. Counts in ``seq`` like a delta."""

    seq: int


Tokens = Annotated[int, Field(ge=0)]
ShortText = Annotated[str, Field(max_length=256)]
MAX_REPORTED_AGENTS: Final = 2_000


class CacheTier(_Lenient):
    """One tier of an engine's KV cache. What is used includes what is cached for later."""

    size_tokens: Tokens
    used_tokens: Tokens


class EngineTotals(_Lenient):
    """What an engine counted since it started; the numbers only grow.

    The three ``*_hit_tokens`` say where the prompt tokens that were found in cache came from; they
    can lag behind ``cached_tokens``, which is the engine's own sum.
    """

    requests: Tokens = Field(default=0, description="Finished requests.")
    prompt_tokens: Tokens = 0
    cached_tokens: Tokens = Field(default=0, description="Of the prompt tokens, found in cache.")
    device_hit_tokens: Tokens = 0
    host_hit_tokens: Tokens = 0
    storage_hit_tokens: Tokens = 0
    evicted_device_tokens: Tokens = 0
    evicted_host_tokens: Tokens = 0
    loaded_tokens: Tokens = Field(default=0, description="Copied ahead of need, host to device.")
    fetched_tokens: Tokens = Field(default=0, description="Fetched ahead, storage to host.")
    prefetch_used_tokens: Tokens = 0
    prefetch_wasted_tokens: Tokens = 0
    prefetch_cancelled_tokens: Tokens = 0
    prefetch_late_tokens: Tokens = 0
    predictions_hit: Tokens = 0
    predictions_missed: Tokens = 0


class FirstTokenTimes(_Lenient):
    """Times from a request's arrival at the scheduler to its first token, as a histogram.

    ``counts`` has one entry for each of ``bounds_s`` (times up to and including that bound, and
    above the bound before), and a last one for longer times.
    """

    bounds_s: Annotated[list[Annotated[float, Field(gt=0)]], Field(max_length=64)] = []
    counts: Annotated[list[Tokens], Field(max_length=65)] = []

    @model_validator(mode="after")
    def _fit_together(self) -> Self:
        if self.counts and len(self.counts) != len(self.bounds_s) + 1:
            raise ValueError("counts must have one entry more than bounds_s")
        if any(a >= b for a, b in zip(self.bounds_s, self.bounds_s[1:], strict=False)):
            raise ValueError("bounds_s must grow")
        return self


class PrefixPlacement(_Lenient):
    """Where an agent's fixed prefix is in one engine.

    Each token counts once, in the nearest tier that has it; what is in none has to be computed
    again (``tokens`` less the three). ``storage_tokens`` were written to the storage tier, which
    may have dropped them since. With several cache namespaces these are sums.
    """

    client_id: Identifier
    agent_id: Identifier
    tokens: Tokens
    device_tokens: Tokens = 0
    host_tokens: Tokens = 0
    storage_tokens: Tokens = 0
    steps_to_execution: Annotated[int, Field(ge=0)] | None = Field(
        default=None, description="As the engine knows it, over all live workflows of the client."
    )


class EngineReport(_Lenient):
    """Body of ``POST /v1/engines/{engine_id}/report``: what an engine's cache holds and did.

    ``number`` is 1 for the first report of a ``run_id`` and grows by one. With ``agents_are`` set
    to ``changes``, ``agents`` has those that differ from the report before and ``forgotten`` those
    that the engine knows no longer, as ``[client_id, agent_id]``.
    """

    run_id: Annotated[str, Field(min_length=1, max_length=64)] = Field(
        description="Changes when the engine starts anew, and its totals with it."
    )
    number: Annotated[int, Field(ge=1)]
    interval_s: Annotated[float, Field(gt=0, le=3600)] = Field(
        description="How often the engine means to report."
    )
    uptime_s: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    model: ShortText = ""
    engine_version: ShortText = Field(default="", description="Such as `sglang 0.5.23`.")
    plugin_version: ShortText = ""
    waiting_requests: Tokens = 0
    running_requests: Tokens = 0
    device: CacheTier | None = None
    host: CacheTier | None = None
    storage: bool = Field(default=False, description="Whether there is a storage tier.")
    totals: EngineTotals = EngineTotals()
    first_token: FirstTokenTimes = FirstTokenTimes()
    agents_are: Literal["all", "changes"] = "all"
    agents: Annotated[list[PrefixPlacement], Field(max_length=MAX_REPORTED_AGENTS)] = []
    forgotten: Annotated[list[tuple[Identifier, Identifier]], Field(max_length=10_000)] = []
    agents_known: Tokens = Field(
        default=0, description="Agents the engine knows; it reports the 2,000 called last at most."
    )


class ReportReceipt(_Lenient):
    """Answer to a report."""

    send_all: bool = Field(
        description="The changes could not be applied, as the service does not hold the report "
        "before: the next report is to have all agents."
    )


class RecentFigures(_Lenient):
    """What was counted in a stretch of time, by one engine or by all."""

    hit_rate: float | None = Field(description="Of the prompt tokens, 0 to 1; null: no prompts.")
    first_token_p50_s: float | None = Field(description="At the engine: queue and prefill.")
    first_token_p95_s: float | None
    requests: int
    prompt_tokens: int
    cached_tokens: int
    device_hit_tokens: int
    host_hit_tokens: int
    storage_hit_tokens: int
    evicted_device_tokens: int
    evicted_host_tokens: int
    prefetch_used_tokens: int
    prefetch_wasted_tokens: int


class EngineSummary(_Lenient):
    """An engine's last report, without where the prefixes are."""

    model: str
    engine_version: str
    plugin_version: str
    uptime_s: float
    reported_ago_s: float
    lease_left_s: float = Field(description="0: the engine has stopped reporting.")
    waiting_requests: int
    running_requests: int
    device: CacheTier | None
    host: CacheTier | None
    storage: bool
    agents: int = Field(description="Agents of which it is known where their prefix is.")
    agents_known: int
    totals: EngineTotals
    recent: RecentFigures = Field(description="The last minute.")


class EngineView(_Lenient):
    """One engine connected to the stream."""

    engine_id: str
    connected_for_s: float
    last_seq: int = Field(description="Sequence number of the last message handed to it.")
    pending: int = Field(
        description="Workflows that changed and have not been sent to it yet; above 1,000: at most."
    )
    report: EngineSummary | None = Field(
        default=None, description="null: it does not report, or has stopped ten minutes ago."
    )


class EngineAway(_Lenient):
    """An engine that was connected in the last week and is not now."""

    engine_id: str
    last_seen_unix_s: float = Field(description="When it was last connected, to about a minute.")


class EngineList(_Lenient):
    """``GET /v1/engines``."""

    engines: list[EngineView]
    away: list[EngineAway] = Field(default=[], description="Not connected now, the latest first.")


class Health(_Lenient):
    """``GET /health`` and ``GET /ready``."""

    status: Literal["ok", "ready"]


def _text_or_none(value: object) -> object:
    return value if isinstance(value, str) else None


class RequestMetadata(_Lenient):
    """``custom_params["kvflow"]`` of a generation request.

    Advisory: a request whose metadata is absent or malformed is served like any other.
    ``steps_to_execution`` comes from ``custom_params["kvflow_steps"]`` (SGLang's ``custom_params``
    hold one level of scalars only); it brings the values in-band, for use without a service.
    """

    workflow_id: Identifier
    agent_id: Identifier
    client_id: Identifier = DEFAULT_CLIENT_ID
    fixed_prefix_tokens: Annotated[int, Field(ge=0)] | None = None
    steps_to_execution: StepsMap | None = None
    version: int | None = None
    ttl_s: TtlSeconds = DEFAULT_TTL_S
    traceparent: Annotated[str | None, BeforeValidator(_text_or_none)] = None


Problem.model_rebuild()
