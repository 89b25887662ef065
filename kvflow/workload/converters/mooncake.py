"""Mooncake's public traces: requests with the hashes of their prompts' blocks.

The format (https://github.com/kvcache-ai/Mooncake, FAST25-release): JSON lines with ``timestamp``
(ms), ``input_length``, ``output_length`` (tokens) and ``hash_ids``, one for each 512 tokens of the
prompt begun. Requests whose ids begin alike have prompts that begin alike. Nothing says which
agent or session a request belongs to, so each becomes a workflow of one call without a graph.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Final

from pydantic import BaseModel, Field

from kvflow.errors import InvalidInputError
from kvflow.protocol import DEFAULT_CLIENT_ID
from kvflow.workload.base import Piece, WorkloadCall, WorkloadWorkflow
from kvflow.workload.lines import parse_line, place, text_lines

__all__ = ["BLOCK_TOKENS", "read_mooncake"]

BLOCK_TOKENS: Final = 512
_AGENT_ID: Final = "request"


class _Request(BaseModel):
    timestamp: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    input_length: Annotated[int, Field(ge=1)]
    output_length: Annotated[int, Field(ge=0)]
    hash_ids: Annotated[list[int], Field(min_length=1)]


def read_mooncake(path: Path) -> Iterator[WorkloadWorkflow]:
    """Yield one workflow per request. Flat memory.

    Raises:
        InvalidInputError: a line is wrong, or comes before the one above it in time.
    """
    latest_ms = 0.0
    for number, line in text_lines(path):
        request = parse_line(_Request, path, number, line)
        if request.timestamp < latest_ms:
            raise InvalidInputError(
                [place(path, number), "timestamp"],
                f"is {request.timestamp}, before the {latest_ms} above; sort the lines by it",
            )
        latest_ms = request.timestamp
        workflow_id = f"request-{number}"
        # A request of which nothing is generated still makes an engine generate a token.
        answer = Piece(f"{workflow_id}/answer", max(request.output_length, 1))
        prompt = _prompt(place(path, number), request)
        call = WorkloadCall(_AGENT_ID, (), 0.0, prompt, 0, answer)
        yield WorkloadWorkflow(DEFAULT_CLIENT_ID, workflow_id, latest_ms / 1000, None, (call,))


def _prompt(here: str, request: _Request) -> tuple[Piece, ...]:
    whole, rest = divmod(request.input_length, BLOCK_TOKENS)
    blocks = whole + (rest > 0)
    if len(request.hash_ids) != blocks:
        raise InvalidInputError(
            [here, "hash_ids"],
            f"has {len(request.hash_ids)} ids; {request.input_length} tokens are {blocks} blocks "
            f"of {BLOCK_TOKENS}",
        )
    pieces = [Piece(f"block-{one}", BLOCK_TOKENS) for one in request.hash_ids[:whole]]
    if rest:
        # The end of one prompt and a whole block of another are never the same tokens.
        pieces.append(Piece(f"block-{request.hash_ids[whole]}-end-{rest}", rest))
    return tuple(pieces)
