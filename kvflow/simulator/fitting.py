"""A cost model from what was timed on a real engine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from kvflow.prefetch import Link
from kvflow.simulator.costs import CostModel

__all__ = ["CopySample", "DecodeSample", "PrefillSample", "Samples", "fit", "mean_of"]

UNKNOWN_LINK: Final = Link(1e9)
"""For a copy that was not timed: as good as no time."""


@dataclass(frozen=True, slots=True)
class PrefillSample:
    """One prefill step: ``new`` tokens of one request after ``before`` cached ones."""

    new: int
    before: int
    seconds: float


@dataclass(frozen=True, slots=True)
class DecodeSample:
    """Decode steps of ``sequences`` requests that read ``context_tokens`` in all; time of one."""

    sequences: int
    context_tokens: float
    seconds: float


@dataclass(frozen=True, slots=True)
class CopySample:
    """One copy of KV."""

    tokens: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Samples:
    """What was timed; an empty sequence where it was not."""

    prefills: Sequence[PrefillSample]
    decodes: Sequence[DecodeSample]
    loads: Sequence[CopySample] = ()
    writes: Sequence[CopySample] = ()
    fetches: Sequence[CopySample] = ()


def fit(name: str, kv_bytes_per_token: int, samples: Samples) -> CostModel:
    """Least squares of relative errors, no coefficient below 0.

    The prefills should be long enough that computing them takes longer than reading the weights,
    of several lengths, and some after a cached prefix. What a request takes besides its steps (the
    way to the engine and back) is in the prefills' times, and so in ``step_overhead_s``; the
    decode steps' own fixed time is ``step_overhead_s + decode_step_s``.

    Raises:
        ValueError: too few samples of a kind to tell its coefficients.
    """
    prefills, decodes = samples.prefills, samples.decodes
    if len({(s.new, s.before) for s in prefills}) < 4:
        raise ValueError("at least four different prefills are needed")
    if len({(s.sequences, s.context_tokens) for s in decodes}) < 3:
        raise ValueError("at least three different decodes are needed")
    overhead_s, per_token_s, per_pair_s, per_cached_pair_s = _least_squares(
        [
            [
                1.0,
                s.new,
                s.new * s.before + s.new * (s.new + 1) / 2,
                s.before * (s.before + 1) / 2,
            ]
            for s in prefills
        ],
        [s.seconds for s in prefills],
    )
    step_s, per_sequence_s, per_context_s = _least_squares(
        [[1.0, s.sequences, s.context_tokens] for s in decodes], [s.seconds for s in decodes]
    )
    overhead_s = min(overhead_s, step_s)
    return CostModel(
        name=name,
        kv_bytes_per_token=kv_bytes_per_token,
        step_overhead_s=overhead_s,
        prefill_s_per_token=per_token_s,
        prefill_s_per_token_pair=per_pair_s,
        decode_step_s=step_s - overhead_s,
        decode_s_per_sequence=per_sequence_s,
        decode_s_per_context_token=per_context_s,
        load=_link(samples.loads),
        write=_link(samples.writes),
        fetch=_link(samples.fetches),
        prefill_s_per_cached_pair=per_cached_pair_s,
    )


def mean_of(first: CostModel, second: CostModel) -> CostModel:
    """The cost model halfway between two of the same engine, such as before and after a run."""

    def middle(name: str) -> float:
        return (float(getattr(first, name)) + float(getattr(second, name))) / 2

    return CostModel(
        name=first.name,
        kv_bytes_per_token=first.kv_bytes_per_token,
        step_overhead_s=middle("step_overhead_s"),
        prefill_s_per_token=middle("prefill_s_per_token"),
        prefill_s_per_token_pair=middle("prefill_s_per_token_pair"),
        decode_step_s=middle("decode_step_s"),
        decode_s_per_sequence=middle("decode_s_per_sequence"),
        decode_s_per_context_token=middle("decode_s_per_context_token"),
        load=_mean_link(first.load, second.load),
        write=_mean_link(first.write, second.write),
        fetch=_mean_link(first.fetch, second.fetch),
        prefill_s_per_cached_pair=middle("prefill_s_per_cached_pair"),
    )


def _mean_link(first: Link, second: Link) -> Link:
    s_per_token = (1 / first.tokens_per_s + 1 / second.tokens_per_s) / 2
    return Link(1 / s_per_token, (first.latency_s + second.latency_s) / 2)


def _link(samples: Sequence[CopySample]) -> Link:
    known = [s for s in samples if s.tokens > 0 and s.seconds > 0]
    if not known:
        return UNKNOWN_LINK
    sizes = {s.tokens for s in known}
    rows = [[1.0 if len(sizes) > 1 else 0.0, float(s.tokens)] for s in known]
    latency_s, s_per_token = _least_squares(rows, [s.seconds for s in known])
    return Link(1 / s_per_token, latency_s) if s_per_token > 0 else Link(1e9, latency_s)


def _least_squares(rows: Sequence[Sequence[float]], seconds: Sequence[float]) -> list[float]:
    """Coefficients of the columns, none below 0, that keep the relative errors small.

    A coefficient that comes out below 0 is left out and the others are fitted again, the most
    negative first. With so few columns that is as good as an exact solution.
    """
    weights = 1 / np.asarray(seconds, dtype=np.float64)
    matrix = np.asarray(rows, dtype=np.float64) * weights[:, None]
    # Columns differ by orders of magnitude (a token pair against a step).
    scale = np.abs(matrix).max(axis=0)
    scale[scale == 0] = 1.0
    kept = list(range(matrix.shape[1]))
    while True:
        found, *_ = np.linalg.lstsq(
            (matrix / scale)[:, kept], np.ones(len(seconds), dtype=np.float64), rcond=None
        )
        if not kept or found.min() >= 0:
            break
        del kept[int(found.argmin())]
    coefficients = [0.0] * matrix.shape[1]
    for column, value in zip(kept, found, strict=True):
        coefficients[column] = float(value / scale[column])
    return coefficients
