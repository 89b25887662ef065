"""The marks on a workflow's graph: which agents may start, and what a start or finish changes.

Marks. When an agent finishes, every out-edge gets a mark that remembers this finish. When an agent
starts, it takes the oldest mark of each in-edge (join ``all``) or the oldest over its in-edges
(join ``any``). An entry agent begins with an entry mark: it counts as the oldest of all, alone lets
the agent start whatever its join, and is used once. Taking a mark from a ``choice`` edge withdraws
the marks that the same finish put on the source's other choice edges, since that branch was not
taken; a join ``all`` over several choice edges does so for each of them.

Mispredictions. A start of an agent whose in-edges do not hold what its join needs takes the marks
that are there. It came in the place of a start that had been predicted, so one of these is taken
back: the agent that could have started for the longest time loses the marks its start would have
taken (an entry mark, being the oldest, goes first). Otherwise each wrong turn would leave a mark
behind for ever, and after some of them every agent would look imminent. The longest predicted one,
since what is wrong grows old while what is right gets started. One only, since of several some may
be right, and their starts would be mispredictions that take back several more each. An agent
without in-edges comes from outside, as a workflow that begins again: nothing is taken back for it.
In a graph that is right, no start is a misprediction but that, and nothing is ever taken back.

Early starts. A nested call (``planner`` calls ``coder`` before it returns) and two processes that
report independently both put the start of an agent before the finish that leads to it. It counts
as a misprediction, but takes no mark yet, nor any back: a start whose missing marks can come from
runs that are under way is remembered, and takes the marks as soon as they are there. The marking is
then the same as if the two events had come in order. If the marks go elsewhere, the start is
forgotten.

Limits. An edge with ``max_iterations`` is used up once so many starts have taken a mark of it (a
mark that is taken back or withdrawn was not used). Its remaining marks are dropped, finishes put no
more on it, and it leads nowhere: a join ``all`` behind it can't run again, a join ``any`` only by
its other edges. A loop that goes on regardless is a misprediction each time it gets there.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence, Sized
from typing import Final

from kvflow.graph.adjacency import Adjacency

__all__ = ["MAX_MARKS_PER_EDGE", "Marking"]

MAX_MARKS_PER_EDGE: Final = 1024
"""An edge holds at most this many marks; a further one drops the oldest. Without a bound, an agent
that finishes again and again while its successor never starts would grow the state for ever. Steps
look only at whether an edge is marked, so they stay right; what is lost is that, of so many starts
still to come, those beyond the bound count as mispredictions."""


class Marking:
    """Marks by edge and agent, both as positions in the graph.

    Args:
        graph: the compiled graph.
        entry: the entry agents.
        runs: the runs under way by agent, a view that the owner keeps up to date. A run that
            starts is in it after ``take``, ``expect`` and ``mispredict``, one that finishes is not
            when ``put`` is called.

    Attributes:
        entry: agents that hold their entry mark.
        by_edge: per marked edge, the numbers of the finishes that put its marks, oldest first.
            Ascending, as finishes are numbered in order and put at most one mark on an edge.
        missing: per agent, how many in-edges must still be marked for it to start. Of a join
            ``any``, less than 0 if several are marked.
        ready: agents that may start, their entry mark aside, in the order in which they came to.
        unmarked_out: agents with a marked out-edge -> how many of their out-edges are not marked.
        used_up: edges that lead nowhere any more, as often as they were taken.
        used_up_sources: the sources of these.

    ``missing``, ``ready`` and ``unmarked_out`` follow from ``by_edge``; kept up to date, they spare
    the step pass a loop over all marks.
    """

    __slots__ = (
        "_early_starts",
        "_finishes",
        "_runs",
        "_taken",
        "by_edge",
        "entry",
        "graph",
        "missing",
        "ready",
        "unmarked_out",
        "used_up",
        "used_up_sources",
    )

    def __init__(self, graph: Adjacency, entry: frozenset[int], runs: Mapping[int, Sized]) -> None:
        self.graph = graph
        self._runs = runs
        self.entry = entry
        self.by_edge: dict[int, tuple[int, ...]] = {}
        self.missing = graph.needed.copy()
        self.ready: dict[int, None] = {}
        self.unmarked_out: dict[int, int] = {}
        self._finishes = 0
        # Per agent, how many of its starts wait for marks of runs under way. Such an agent may not
        # start (or it would have taken what it waits for), and the runs can still serve the number.
        self._early_starts: dict[int, int] = {}
        # Per edge with a limit, how many starts have taken a mark of it.
        self._taken: dict[int, int] = {}
        self.used_up: frozenset[int] = frozenset()
        self.used_up_sources: frozenset[int] = frozenset()

    def copy(self, runs: Mapping[int, Sized]) -> Marking:
        """Return an independent marking that looks at ``runs``."""
        twin = Marking(self.graph, self.entry, runs)
        twin.by_edge = self.by_edge.copy()
        twin.missing = self.missing.copy()
        twin.ready = self.ready.copy()
        twin.unmarked_out = self.unmarked_out.copy()
        twin._finishes = self._finishes
        twin._early_starts = self._early_starts.copy()
        twin._taken = self._taken.copy()
        twin.used_up = self.used_up
        twin.used_up_sources = self.used_up_sources
        return twin

    def take(self, agent: int) -> bool:
        """Take the marks that let the agent start, or none and return False if they do not.

        O(in-edges), plus the siblings of the choice edges among them.
        """
        if agent in self.entry:
            self.entry -= {agent}
            return True
        if agent not in self.ready:
            return False
        self._count(self._take_marks(agent))
        return True

    def expect(self, agent: int) -> bool:
        """Remember a start that found too few marks, and return True, if it is an early one."""
        early = self._early_starts.get(agent, 0)
        if early >= self._servable_starts(agent):
            return False
        self._early_starts[agent] = early + 1
        return True

    def mispredict(self, agent: int) -> None:
        """Let a start that found too few marks, and is no early one, take those there are, and
        take back one that was predicted.

        O(edges of the two agents).
        """
        if not self.graph.in_edges[agent]:
            return
        # The marks of an agent with early starts are what these count on.
        if agent not in self._early_starts:
            marked = [edge for edge in self.graph.in_edges[agent] if edge in self.by_edge]
            for edge in marked:
                self._take_mark(edge)
            self._count(marked)
        if self.entry:
            self.entry -= {min(self.entry)}
        elif self.ready:
            self._take_marks(next(iter(self.ready)))

    def put(self, agent: int) -> bool:
        """Mark the out-edges of an agent that has finished. O(out-edges).

        Returns:
            False if early starts took some of the marks right away.
        """
        self._finishes += 1
        used_up = self.used_up
        for edge in self.graph.out_edges[agent]:
            if edge not in used_up:
                self.add_mark(edge)
        return not self._early_starts or not self._serve_early_starts(agent)

    def add_mark(self, edge: int) -> None:
        """Put a mark of the latest finish on one edge."""
        marks = self.by_edge.get(edge)
        if marks is not None:
            kept = marks if len(marks) < MAX_MARKS_PER_EDGE else marks[1:]
            self.by_edge[edge] = (*kept, self._finishes)
            return
        self.by_edge[edge] = (self._finishes,)
        source, target = self.graph.source[edge], self.graph.target[edge]
        missing = self.missing[target] - 1
        self.missing[target] = missing
        if missing == 0:
            self.ready[target] = None
        unmarked = self.unmarked_out.get(source)
        if unmarked is None:
            unmarked = len(self.graph.out_edges[source])
        self.unmarked_out[source] = unmarked - 1

    def _take_marks(self, agent: int) -> Sequence[int]:
        """Take what a start of an agent that is ready takes, and return the edges it was on."""
        edges: Sequence[int] = self.graph.in_edges[agent]
        if self.graph.joins_any[agent]:
            marked = [(marks[0], edge) for edge in edges if (marks := self.by_edge.get(edge))]
            edges = (min(marked)[1],)
        for edge in edges:
            self._take_mark(edge)
        return edges

    def _count(self, taken: Iterable[int]) -> None:
        """A start has taken marks of these edges: use up those that have reached their limit."""
        limits = self.graph.max_taken
        if not limits:
            return
        for edge in taken:
            limit = limits.get(edge)
            if limit is None or edge in self.used_up:
                continue
            count = self._taken[edge] = self._taken.get(edge, 0) + 1
            if count >= limit:
                self._use_up(edge)

    def _use_up(self, edge: int) -> None:
        self.used_up |= {edge}
        self.used_up_sources |= {self.graph.source[edge]}
        for finish in self.by_edge.get(edge, ()):
            self._drop_mark(edge, finish)
        self._forget_hopeless(self.graph.target[edge])

    def _take_mark(self, edge: int) -> None:
        finish = self.by_edge[edge][0]
        self._drop_mark(edge, finish)
        graph = self.graph
        if graph.is_choice[edge]:
            # None of the siblings leads to this edge's target (an edge is declared once), so this
            # cannot take away what a join still counts on.
            for sibling in graph.choice_edges[graph.source[edge]]:
                if finish in self.by_edge.get(sibling, ()):
                    self._drop_mark(sibling, finish)
                    self._forget_hopeless(graph.target[sibling])

    def _drop_mark(self, edge: int, finish: int) -> None:
        marks = self.by_edge[edge]
        if len(marks) > 1:
            self.by_edge[edge] = tuple(mark for mark in marks if mark != finish)
            return
        del self.by_edge[edge]
        source, target = self.graph.source[edge], self.graph.target[edge]
        missing = self.missing[target] + 1
        self.missing[target] = missing
        if missing == 1:
            del self.ready[target]
        unmarked = self.unmarked_out[source] + 1
        if unmarked == len(self.graph.out_edges[source]):
            del self.unmarked_out[source]
        else:
            self.unmarked_out[source] = unmarked

    def _servable_starts(self, agent: int) -> int:
        """Return how many starts the marks there are and the runs under way can serve.

        A finish turns a run into a mark and an early start that is served takes what it counted on,
        so of all changes only a mark withdrawn with its sibling can leave an early start without
        hope.
        """
        graph = self.graph
        supply = [
            0
            if edge in self.used_up
            else len(self.by_edge.get(edge, ())) + len(self._runs.get(graph.source[edge], ()))
            for edge in graph.in_edges[agent]
        ]
        return sum(supply) if graph.joins_any[agent] else min(supply, default=0)

    def _serve_early_starts(self, finished: int) -> bool:
        """Let early starts take the marks that ``finished`` has just put; True if any did."""
        served = False
        for agent in self.graph.successors[finished]:
            while agent in self._early_starts and (agent in self.entry or agent in self.ready):
                served = True
                self._set_early_starts(agent, self._early_starts[agent] - 1)
                self.take(agent)
        return served

    def _forget_hopeless(self, agent: int) -> None:
        """Forget early starts beyond what can still be served."""
        early = self._early_starts.get(agent, 0)
        if early:
            self._set_early_starts(agent, min(early, self._servable_starts(agent)))

    def _set_early_starts(self, agent: int, count: int) -> None:
        if count:
            self._early_starts[agent] = count
        else:
            del self._early_starts[agent]
