"""A cost model from what was timed on a real engine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from kvflow.prefetch import Link
from kvflow.simulator.costs import CostModel

__all__ = ["CopySample", "DecodeSample", "PrefillSample", "Samples", "fit", "mean_of"]

_Array = npt.NDArray[np.float64]

_OUTLIER: Final = 0.1
_ROUNDS: Final = 50
_LEAST_S: Final = 1e-9

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
    """Small relative errors, no coefficient below 0, and little heed of outliers.

    The prefills should be long enough that computing them takes longer than reading the weights,
    of several lengths, and some after a cached prefix. What a request takes besides its steps (the
    way to the engine and back) is in the prefills' times. What is fixed in both a prefill and a
    decode step becomes ``step_overhead_s``, what either has more of ``prefill_overhead_s`` or
    ``decode_step_s``. With decodes of one, two and more sequences at a time, what any batch takes
    beyond one sequence alone is told from what each sequence adds.

    Raises:
        ValueError: too few samples of a kind to tell its coefficients.
    """
    prefills, decodes = samples.prefills, samples.decodes
    if len({(s.new, s.before) for s in prefills}) < 4:
        raise ValueError("at least four different prefills are needed")
    if len({(s.sequences, s.context_tokens) for s in decodes}) < 3:
        raise ValueError("at least three different decodes are needed")
    prefill_fixed_s, per_token_s, per_pair_s, per_cached_pair_s = _coefficients(
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
    told_apart = len({s.sequences for s in decodes}) > 2
    decode_fixed_s, batched_s, per_sequence_s, per_context_s = _coefficients(
        [
            [1.0, float(told_apart and s.sequences > 1), s.sequences, s.context_tokens]
            for s in decodes
        ],
        [s.seconds for s in decodes],
    )
    overhead_s = min(prefill_fixed_s, decode_fixed_s)
    return CostModel(
        name=name,
        kv_bytes_per_token=kv_bytes_per_token,
        step_overhead_s=overhead_s,
        prefill_s_per_token=per_token_s,
        prefill_s_per_token_pair=per_pair_s,
        decode_step_s=decode_fixed_s - overhead_s,
        decode_s_per_sequence=per_sequence_s,
        decode_s_per_context_token=per_context_s,
        load=_link(samples.loads),
        write=_link(samples.writes),
        fetch=_link(samples.fetches),
        prefill_overhead_s=prefill_fixed_s - overhead_s,
        prefill_s_per_cached_pair=per_cached_pair_s,
        decode_batched_s=batched_s,
    )


def mean_of(first: CostModel, second: CostModel) -> CostModel:
    """The cost model halfway between two of the same engine, such as before and after a run."""
    middle: dict[str, Any] = {}
    for name in (field.name for field in fields(CostModel)):
        one, other = getattr(first, name), getattr(second, name)
        if isinstance(one, Link):
            middle[name] = _mean_link(one, other)
        elif name not in ("name", "kv_bytes_per_token"):
            middle[name] = (one + other) / 2
    return replace(first, **middle)


def _mean_link(first: Link, second: Link) -> Link:
    s_per_token = (1 / first.tokens_per_s + 1 / second.tokens_per_s) / 2
    return Link(1 / s_per_token, (first.latency_s + second.latency_s) / 2)


def _link(samples: Sequence[CopySample]) -> Link:
    known = [s for s in samples if s.tokens > 0 and s.seconds > 0]
    if not known:
        return UNKNOWN_LINK
    sizes = {s.tokens for s in known}
    rows = [[1.0 if len(sizes) > 1 else 0.0, float(s.tokens)] for s in known]
    latency_s, s_per_token = _coefficients(rows, [s.seconds for s in known])
    return Link(1 / s_per_token, latency_s) if s_per_token > 0 else Link(1e9, latency_s)


def _coefficients(rows: Sequence[Sequence[float]], seconds: Sequence[float]) -> list[float]:
    """Of the columns, none below 0, such that relative errors are small.

    Huber's estimate by reweighted least squares: errors are relative to what is predicted, and one
    beyond ``_OUTLIER`` counts as much as one of that size. So a process that was held for a moment,
    or an answer whose tokens came all at once, does not move the others.
    """
    matrix = np.asarray(rows, dtype=np.float64)
    measured = np.asarray(seconds, dtype=np.float64)
    weights = np.full(len(measured), 1 / float(np.median(measured)))
    found = _least_squares(matrix, measured, weights)
    for _ in range(_ROUNDS):
        predicted = np.maximum(matrix @ found, _LEAST_S)
        errors = np.abs(measured / predicted - 1)
        weights = np.sqrt(np.minimum(1.0, _OUTLIER / np.maximum(errors, 1e-12))) / predicted
        found = _least_squares(matrix, measured, weights)
    return [float(value) for value in found]


def _least_squares(matrix: _Array, measured: _Array, weights: _Array) -> _Array:
    """A coefficient that comes out below 0 is left out and the others are fitted again, the most
    negative first. With so few columns that is as good as an exact solution."""
    weighted = matrix * weights[:, None]
    # Columns differ by orders of magnitude (a token pair against a step).
    scale = np.abs(weighted).max(axis=0)
    scale[scale == 0] = 1.0
    coefficients = np.zeros(matrix.shape[1])
    kept = list(range(matrix.shape[1]))
    while kept:
        found, *_ = np.linalg.lstsq((weighted / scale)[:, kept], measured * weights, rcond=None)
        if found.min() >= 0:
            coefficients[kept] = found / scale[kept]
            break
        del kept[int(found.argmin())]
    return coefficients
