"""Cost models as JSON, such as one fitted to the user's machine."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from kvflow.errors import InvalidInputError
from kvflow.prefetch import Link
from kvflow.simulator.costs import CostModel

__all__ = ["cost_model_from", "read_cost_model", "written_cost_model"]

_Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class _Link(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    tokens_per_s: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    latency_s: _Seconds = 0.0

    def link(self) -> Link:
        return Link(self.tokens_per_s, self.latency_s)


class _Costs(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    kv_bytes_per_token: Annotated[int, Field(ge=1)]
    step_overhead_s: _Seconds
    prefill_s_per_token: _Seconds
    prefill_s_per_token_pair: _Seconds
    decode_step_s: _Seconds
    decode_s_per_sequence: _Seconds
    decode_s_per_context_token: _Seconds
    load: _Link
    write: _Link
    fetch: _Link
    prefill_overhead_s: _Seconds = 0.0
    prefill_s_per_cached_pair: _Seconds = 0.0
    decode_batched_s: _Seconds = 0.0


def written_cost_model(costs: CostModel) -> dict[str, Any]:
    """The model as plain JSON values; `cost_model_from` takes them back."""
    return asdict(costs)


def cost_model_from(data: Mapping[str, Any]) -> CostModel:
    """Check and make a cost model.

    Raises:
        InvalidInputError: names the first field that is wrong.
    """
    try:
        costs = _Costs.model_validate(data)
    except ValidationError as error:
        first = error.errors()[0]
        raise InvalidInputError(first["loc"] or ["costs"], first["msg"]) from error
    fields = costs.model_dump(exclude={"load", "write", "fetch"})
    return CostModel(
        **fields, load=costs.load.link(), write=costs.write.link(), fetch=costs.fetch.link()
    )


def read_cost_model(path: Path) -> CostModel:
    """Read a file with one cost model, by itself or under the key ``costs``.

    Raises:
        InvalidInputError: it cannot be read, is not JSON, or a value in it is wrong.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InvalidInputError([str(path)], f"cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise InvalidInputError([str(path)], f"is not JSON: {error}") from error
    if not isinstance(data, dict):
        raise InvalidInputError([str(path)], "is no JSON object; a cost model is one")
    return cost_model_from(data.get("costs", data))
