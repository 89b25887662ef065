"""How long an engine's operations take."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from kvflow.prefetch import Link

__all__ = ["CostModel"]


@dataclass(frozen=True, slots=True)
class CostModel:
    """Seconds per operation. Pure arithmetic, no state.

    A step is one pass through the model: a prefill of new tokens of one or more requests, or one
    token for each running request. The times of both include ``step_overhead_s``, so they are those
    of the whole step; what it waits for (a load from the host) is not part of them.

    Attributes:
        name: what it stands for, e.g. ``"h100 llama-3.1-8b"``.
        kv_bytes_per_token: of all layers and, with tensor parallelism, of all ranks.
        step_overhead_s: of any step: scheduling, launching, sampling.
        prefill_s_per_token: what each new token costs whatever is before it.
        prefill_s_per_token_pair: attention, for each pair of a new token and one that it reads.
        decode_step_s: reading the weights once; a prefill takes no less.
        decode_s_per_sequence: what each running request adds to a decode step.
        decode_s_per_context_token: reading one token's KV in a decode step.
        load: host to device.
        write: device to host.
        fetch: storage to host.
        prefill_overhead_s: of a prefill step, in addition. 0 in the presets; in a model that was
            fitted to an engine, a request's way there and back is in it.
        prefill_s_per_cached_pair: for each pair among the tokens that have their KV already. 0 but
            for engines whose attention computes those again, as SGLang's ``torch_native`` does.
        decode_batched_s: what a decode step of more than one request takes in addition, however
            many they are. 0 on a GPU; on a CPU one request alone is multiplied by other kernels.
    """

    name: str
    kv_bytes_per_token: int
    step_overhead_s: float
    prefill_s_per_token: float
    prefill_s_per_token_pair: float
    decode_step_s: float
    decode_s_per_sequence: float
    decode_s_per_context_token: float
    load: Link
    write: Link
    fetch: Link
    prefill_overhead_s: float = 0.0
    prefill_s_per_cached_pair: float = 0.0
    decode_batched_s: float = 0.0

    def prefill_s(self, parts: Iterable[tuple[int, int]]) -> float:
        """Time of a prefill step; 0 if it has no new tokens.

        Args:
            parts: for each request of the batch its new tokens in this step, and how many tokens
                before those have their KV already: from the cache or an earlier chunk.
        """
        tokens = 0
        pairs = 0.0
        cached_pairs = 0.0
        for new, before in parts:
            if new:
                tokens += new
                pairs += new * before + new * (new + 1) / 2
                cached_pairs += before * (before + 1) / 2
        if not tokens:
            return 0.0
        return (
            self.step_overhead_s
            + self.prefill_overhead_s
            + max(self.decode_step_s, self.prefill_s_per_token * tokens)
            + self.prefill_s_per_token_pair * pairs
            + self.prefill_s_per_cached_pair * cached_pairs
        )

    def decode_s(self, sequences: int, context_tokens: int) -> float:
        """Time of one decode step; 0 without requests.

        Args:
            sequences: running requests; each gets one token.
            context_tokens: KV that is read, over all of them.
        """
        if not sequences:
            return 0.0
        return (
            self.step_overhead_s
            + self.decode_step_s
            + (self.decode_batched_s if sequences > 1 else 0.0)
            + self.decode_s_per_sequence * sequences
            + self.decode_s_per_context_token * context_tokens
        )
