"""Prompts as chains of pieces, interned, so that equal beginnings are one object.

Prompts share whole pieces, so a beginning of one is known by its last piece and what is before
that; and a page of the cache is known by the piece that it ends in. A simulated radix tree holds
pages this way and no token ids.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING
from weakref import WeakValueDictionary

from kvflow.workload import Piece

if TYPE_CHECKING:
    from kvflow.simulator.clients import LiveWorkflow

__all__ = ["Path", "Prefix", "PrefixPool"]


class Prefix:
    """The beginning of a prompt up to the end of one of its pieces.

    Attributes:
        parent: the beginning up to the piece before; None for a first piece.
        depth: pieces before the last one.
        tokens: length.
        aligned: length in whole pages, in tokens.
        identity: tells it from all others, also once this object is gone. A 64-bit hash: among a
            million prefixes two are confused with a probability of 1 in 30 million.
        uses: which coming calls read it, by workflow; kept by the clairvoyant policy alone.
    """

    __slots__ = (
        "__weakref__",
        "aligned",
        "depth",
        "identity",
        "parent",
        "tokens",
        "uses",
    )

    def __init__(self, parent: Prefix | None, identity: int, tokens: int, page_tokens: int) -> None:
        self.parent = parent
        self.depth: int = 0 if parent is None else parent.depth + 1
        self.tokens = tokens
        self.aligned = tokens // page_tokens * page_tokens
        self.identity = identity
        self.uses: dict[LiveWorkflow, list[int]] | None = None

    def holding(self, end: int) -> Prefix:
        """The part of this prefix in whose last piece the page up to ``end`` ends."""
        prefix = self
        while prefix.parent is not None and prefix.parent.aligned >= end:
            prefix = prefix.parent
        return prefix


Path = tuple[Prefix, ...]
"""The prefixes of one prompt, from that of its first piece on."""


class PrefixPool:
    """Makes prefixes; each exists once, for as long as something refers to it."""

    def __init__(self, page_tokens: int) -> None:
        self._page_tokens = page_tokens
        self._known: WeakValueDictionary[int, Prefix] = WeakValueDictionary()

    def __len__(self) -> int:
        return len(self._known)

    def path(self, pieces: Iterable[Piece], after: Path = ()) -> Path:
        """The path of a prompt, or of what follows on another path. O(pieces)."""
        path = list(after)
        parent = after[-1] if after else None
        known = self._known
        for piece in pieces:
            if piece.tokens <= 0:
                continue
            identity = hash((None if parent is None else parent.identity, piece.key))
            prefix = known.get(identity)
            if prefix is None:
                tokens = piece.tokens + (0 if parent is None else parent.tokens)
                prefix = Prefix(parent, identity, tokens, self._page_tokens)
                known[identity] = prefix
            path.append(prefix)
            parent = prefix
        return tuple(path)
