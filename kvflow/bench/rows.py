"""What is kept of a call and of a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from kvflow.bench.drive import FinishedCall

__all__ = ["CallRow", "Run"]


@dataclass(frozen=True, slots=True)
class CallRow:
    """One call, as it is written down.

    Attributes:
        position: in its workflow's calls.
        repeat: from 1.
        started_s: from the beginning of the run, as all times of the row.
        device_tokens, host_tokens, storage_tokens: where the prompt's cached tokens were when the
            request entered a batch.
        fixed_tokens: length of the agent's fixed prefix (in words for text prompts).
        counted: whether it belongs to what is measured, and not to the warm-up.
    """

    workflow_id: str
    client_id: str
    agent_id: str
    position: int
    repeat: int
    started_s: float
    ttft_s: float
    total_s: float
    prompt_tokens: int
    cached_tokens: int
    device_tokens: int
    host_tokens: int
    storage_tokens: int
    fixed_tokens: int
    output_tokens: int
    output_hash: str
    counted: bool

    @classmethod
    def of(cls, finished: FinishedCall, repeat: int, counted: bool) -> CallRow:
        reply = finished.reply
        return cls(
            workflow_id=finished.workflow.workflow_id,
            client_id=finished.workflow.client_id,
            agent_id=finished.call.agent_id,
            position=finished.position,
            repeat=repeat,
            started_s=reply.started_s,
            ttft_s=reply.ttft_s,
            total_s=reply.total_s,
            prompt_tokens=reply.prompt_tokens,
            cached_tokens=reply.cached_tokens,
            device_tokens=reply.device_tokens,
            host_tokens=reply.host_tokens,
            storage_tokens=reply.storage_tokens,
            fixed_tokens=finished.call.fixed_tokens,
            output_tokens=reply.output_tokens,
            output_hash=reply.output_hash,
            counted=counted,
        )

    @property
    def ended_s(self) -> float:
        return self.started_s + self.total_s

    def to_json(self) -> dict[str, Any]:
        """The row; times to the microsecond."""
        row = asdict(self)
        for name in ("started_s", "ttft_s", "total_s"):
            row[name] = round(row[name], 6)
        row["output_hash"] = self.output_hash[:16]
        return row


@dataclass(frozen=True, slots=True)
class Run:
    """One repeat of one arm.

    Attributes:
        calls: in the order in which they ended.
        counted_from_s: when the warm-up was over.
        metrics_delta: what the plugin's counters grew by from then on; empty for stock SGLang.
        bound_hits: per call, the prompt tokens that a clairvoyant cache of all tiers together would
            have found; None if not worked out.
        mirrored_hits: the same for a cache of the host tier's size.
        refusals: what the KVFlow service did not take.
    """

    repeat: int
    calls: Sequence[CallRow]
    counted_from_s: float
    metrics_delta: Mapping[str, float] = field(default_factory=dict)
    bound_hits: Sequence[int] | None = None
    mirrored_hits: Sequence[int] | None = None
    refusals: Sequence[str] = ()

    @property
    def counted(self) -> list[CallRow]:
        return [row for row in self.calls if row.counted]

    @property
    def wall_s(self) -> float:
        """From the end of the warm-up to the end of the last call."""
        return max(row.ended_s for row in self.calls) - self.counted_from_s

    def counted_of(self, hits: Sequence[int] | None) -> int | None:
        """The sum of per-call figures over the calls that are counted."""
        if hits is None:
            return None
        return sum(hit for hit, row in zip(hits, self.calls, strict=True) if row.counted)
