"""The calls of a simulation in the order in which they used the cache, for the bound."""

from __future__ import annotations

from array import array
from collections.abc import Iterator

from kvflow.eviction import PageRun, RunCall, clairvoyant_hit_pages
from kvflow.simulator.requests import Request

__all__ = ["CallLog"]


_LOOK, _COMPUTED, _ENDED = range(3)


class CallLog:
    """Calls as three accesses each: scheduled, computed, ended.

    See ``clairvoyant_hit_pages`` for why three. Takes 12 bytes for each piece of a prompt and some
    90 for a call.
    """

    def __init__(self, page_tokens: int) -> None:
        self._page_tokens = page_tokens
        self._identities = array("q")
        self._pages = array("i")
        # Per call: where its runs begin, how many are its prompt's, whether it has an answer's,
        # how many pages of that are never there, whether it is counted.
        self._first = array("q")
        self._prompt_runs = array("i")
        self._answer_runs = array("b")
        self._unneeded = array("b")
        self._counted = array("b")
        # Per access: which call, and what of it.
        self._calls = array("q")
        self._kinds = array("b")
        # How many pages, by access, where only a part of a prompt has been computed.
        self._parts: dict[int, int] = {}

    def scheduled(self, request: Request) -> None:
        """A request has been matched with what is cached."""
        page = self._page_tokens
        request.log_position = len(self._first)
        self._first.append(len(self._identities))
        runs = 0
        before = 0
        for prefix in request.whole:
            if prefix.aligned > before:
                self._identities.append(prefix.identity)
                self._pages.append((prefix.aligned - before) // page)
                before = prefix.aligned
                runs += 1
        whole, prompt = request.whole[-1], request.path[-1]
        answer_runs = int(whole.aligned > prompt.aligned)
        self._prompt_runs.append(runs - answer_runs)
        self._answer_runs.append(answer_runs)
        # The last token's KV is never computed, which may be a page less.
        self._unneeded.append(whole.aligned // page - request.kv_tokens // page)
        self._counted.append(0)
        self._add(request, _LOOK)

    def computed(self, request: Request) -> None:
        """The prompt of a request has been computed, or a part of it that others can read now."""
        if request.computed_tokens < request.prompt_tokens:
            self._parts[len(self._calls)] = request.computed_tokens // self._page_tokens
        self._add(request, _COMPUTED)

    def ended(self, request: Request, *, counted: bool) -> None:
        """A request has ended, and only now it is known whether it counts."""
        self._counted[request.log_position] = counted
        self._add(request, _ENDED)

    def _add(self, request: Request, kind: int) -> None:
        self._calls.append(request.log_position)
        self._kinds.append(kind)

    def hit_tokens(self, capacity_tokens: int | None) -> int:
        """The most prompt tokens that the counted calls could have found."""
        page = self._page_tokens
        capacity = None if capacity_tokens is None else capacity_tokens // page
        return page * sum(clairvoyant_hit_pages(self, capacity))

    def __iter__(self) -> Iterator[RunCall]:
        return (self._access(position) for position in range(len(self._calls)))

    def __reversed__(self) -> Iterator[RunCall]:
        return (self._access(position) for position in range(len(self._calls) - 1, -1, -1))

    def _access(self, position: int) -> RunCall:
        call, kind = self._calls[position], self._kinds[position]
        first, prompt_runs = self._first[call], self._prompt_runs[call]
        after = first + prompt_runs
        prompt = list(map(PageRun, self._identities[first:after], self._pages[first:after]))
        if kind == _LOOK:
            return RunCall(prompt, prompt_runs if self._counted[call] else 0, brings=False)
        if kind == _COMPUTED:
            pages = self._parts.get(position)
            return RunCall(prompt, 0, holds=prompt) if pages is None else _part(prompt, pages)
        answer = [
            PageRun(self._identities[run], self._pages[run])
            for run in range(after, after + self._answer_runs[call])
        ]
        return RunCall([*prompt, *answer], 0, unneeded_pages=self._unneeded[call], releases=prompt)


def _part(prompt: list[PageRun], pages: int) -> RunCall:
    """The first pages of a prompt. The run that they end in is taken for there, without room."""
    runs = []
    there = 0
    for run in prompt:
        if there >= pages:
            break
        runs.append(run)
        there += run.pages
    return RunCall(runs, 0, unneeded_pages=max(0, there - pages))
