"""How far the predictions of a workflow are to be believed.

A wrong graph, or events that never come, must not cost more than having no hints at all. So the
predictions are scored against what really ran; a workflow whose predictions fail loses prefetch
first and its eviction priorities second, and gets both back once they hold again.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from typing import Final, Literal

from kvflow.graph import INFINITE_STEPS

__all__ = ["PredictionTrust", "Trust"]

Trust = Literal["full", "no_prefetch", "none"]
"""``none`` means neither prefetch nor eviction priorities."""

MAX_FAMILIES: Final = 65_536
MAX_ENDED_WORKFLOWS: Final = 4_096
"""What was prefetched for a workflow often leaves the device only after the workflow's end, so its
family is remembered a little longer."""

OUTCOME_WEIGHT: Final = 0.2
"""Of the newest outcome in a score."""

PREFETCH_LOST_BELOW: Final = 0.6
PREFETCH_BACK_ABOVE: Final = 0.75
PRIORITIES_LOST_BELOW: Final = 0.35
PRIORITIES_BACK_ABOVE: Final = 0.5

OUTCOME_LOST_BELOW: Final = 0.3
OUTCOME_BACK_ABOVE: Final = 0.5
OUTCOME_RECOVERY: Final = 0.02
"""Where nothing is prefetched no prefetch can prove useful. So while prefetch is lost for its
outcomes, each hit of a prediction takes their score this share of the way to 1: from just below
``OUTCOME_LOST_BELOW``, prefetch is tried again after some 17 hits."""

_Key = tuple[str, str]
"""``(client_id, workflow_id)``"""

_FamilyKey = tuple[str, frozenset[str]]


@dataclass(slots=True, eq=False)
class _Family:
    predictions: float = 1.0
    outcomes: float = 1.0
    predictions_lost: bool = False
    outcomes_lost: bool = False
    priorities_lost: bool = False
    # A dict as a set that keeps its order: it has to be the same in every process.
    workflows: dict[_Key, None] = field(default_factory=dict)

    @property
    def trust(self) -> Trust:
        if self.priorities_lost:
            return "none"
        return "no_prefetch" if self.predictions_lost or self.outcomes_lost else "full"

    def score_prediction(self, hit: bool) -> None:
        self.predictions += OUTCOME_WEIGHT * (hit - self.predictions)
        score = self.predictions
        self.predictions_lost = _lost(
            self.predictions_lost, score, PREFETCH_LOST_BELOW, PREFETCH_BACK_ABOVE
        )
        self.priorities_lost = _lost(
            self.priorities_lost, score, PRIORITIES_LOST_BELOW, PRIORITIES_BACK_ABOVE
        )
        if hit and self.outcomes_lost:
            self._move_outcomes(1.0, OUTCOME_RECOVERY)

    def score_outcome(self, used: bool) -> None:
        self._move_outcomes(float(used), OUTCOME_WEIGHT)

    def _move_outcomes(self, towards: float, weight: float) -> None:
        self.outcomes += weight * (towards - self.outcomes)
        self.outcomes_lost = _lost(
            self.outcomes_lost, self.outcomes, OUTCOME_LOST_BELOW, OUTCOME_BACK_ABOVE
        )


def _lost(was_lost: bool, score: float, lost_below: float, back_above: float) -> bool:
    return score <= back_above if was_lost else score < lost_below


@dataclass(slots=True, eq=False)
class _Workflow:
    family: _Family
    steps: Mapping[str, float]
    # Agents whose start a request has announced and its event has not: it is scored already.
    announced: set[str] = field(default_factory=set)
    last_caller: str | None = None


class PredictionTrust:
    """Scores predictions per family of workflows and says what each may still govern.

    A family is the workflows of one client with the same agents: a new workflow begins with what
    its family has earned. A family that is not known is trusted in full. Two scores in [0, 1],
    each an exponentially weighted mean of outcomes: whether agents that ran had been predicted to
    run next (governs prefetch and priorities), and whether prefetches were used (prefetch alone).
    Thresholds have hysteresis; see this module's constants.

    ``update`` and ``called`` are to be told all that happens whatever the trust is now, or lost
    trust can't come back; after a gap in the updates (a lost lease), ``forget`` the workflow, so
    that its next vector counts as its first. What changes trust returns the live workflows for
    which it changed, in the order in which they joined their family.

    Bounded: the family that a workflow joined least recently is forgotten first. Deterministic:
    no clock, and the same calls give the same results in every process. Not thread-safe.
    O(agents) per update, O(1) else, plus the workflows returned.
    """

    def __init__(self) -> None:
        self._families: OrderedDict[_FamilyKey, _Family] = OrderedDict()
        self._workflows: dict[_Key, _Workflow] = {}
        self._ended: OrderedDict[_Key, _Family] = OrderedDict()
        self.hits = 0
        self.misses = 0

    def trust(self, key: _Key) -> Trust:
        """What the workflow's predictions may govern; ``full`` if it is not known."""
        workflow = self._workflows.get(key)
        return "full" if workflow is None else workflow.family.trust

    def family(self, key: _Key) -> Hashable | None:
        """The same object for all live workflows of one family; None if it is not known."""
        workflow = self._workflows.get(key)
        return None if workflow is None else workflow.family

    def update(self, key: _Key, steps: Mapping[str, float]) -> list[_Key]:
        """Take the present steps-to-execution of all agents of a workflow.

        An agent whose steps become 0 has started: a hit if they were at most 1, else a miss. What
        runs in a workflow's first vector, or appears in a later one as running, had no prediction
        and scores nothing.

        Args:
            steps: kept, so it must not change afterwards.
        """
        workflow = self._workflows.get(key)
        if workflow is None:
            workflow = self._workflows[key] = _Workflow(self._join(key, steps), steps)
            self._ended.pop(key, None)
            return []
        trust_before = workflow.family.trust
        scored = workflow.family
        for agent_id, now in steps.items():
            before = workflow.steps.get(agent_id)
            if now > 0 or before == 0:
                continue
            if agent_id in workflow.announced:
                workflow.announced.discard(agent_id)
            elif before is not None:
                self._score(workflow, before)
        changed = _workflows_if(scored, trust_before)
        if steps.keys() != workflow.steps.keys():
            del scored.workflows[key]
            workflow.family = self._join(key, steps)
            changed = [other for other in changed if other != key]
            if workflow.family.trust != trust_before:
                changed.append(key)
        workflow.steps = steps
        return changed

    def called(self, key: _Key, agent_id: str) -> list[_Key]:
        """A request of the agent came.

        Says nothing new about an agent known to run. About any other it is a start whose event
        has yet to come, or never will: a hit if the agent's steps are 1, else a miss, as for an
        agent the workflow does not have. That start is scored once: neither by the agent's next
        calls (until another agent calls) nor by the update that confirms it. Ignored if the
        workflow is not known, or nothing is of its agents: then nothing was predicted.
        """
        workflow = self._workflows.get(key)
        if workflow is None or not workflow.steps:
            return []
        steps = workflow.steps.get(agent_id, INFINITE_STEPS)
        goes_on = workflow.last_caller == agent_id and agent_id in workflow.announced
        workflow.last_caller = agent_id
        if steps == 0 or goes_on:
            return []
        trust_before = workflow.family.trust
        workflow.announced.add(agent_id)
        self._score(workflow, steps)
        return _workflows_if(workflow.family, trust_before)

    def prefetched(self, key: _Key, used: bool) -> list[_Key]:
        """What was prefetched for the workflow was used, or left the device before it was.

        May come after the workflow's end; ignored if the workflow is long gone.
        """
        workflow = self._workflows.get(key)
        family = self._ended.get(key) if workflow is None else workflow.family
        if family is None:
            return []
        trust_before = family.trust
        family.score_outcome(used)
        return _workflows_if(family, trust_before)

    def forget(self, key: _Key) -> None:
        """The workflow ended. What its family has earned stays."""
        workflow = self._workflows.pop(key, None)
        if workflow is None:
            return
        del workflow.family.workflows[key]
        self._ended[key] = workflow.family
        if len(self._ended) > MAX_ENDED_WORKFLOWS:
            self._ended.popitem(last=False)

    def _join(self, key: _Key, steps: Mapping[str, float]) -> _Family:
        family_key = (key[0], frozenset(steps))
        family = self._families.setdefault(family_key, _Family())
        self._families.move_to_end(family_key)
        if len(self._families) > MAX_FAMILIES:
            self._families.popitem(last=False)
        family.workflows[key] = None
        return family

    def _score(self, workflow: _Workflow, steps: float) -> None:
        hit = steps <= 1
        self.hits += hit
        self.misses += not hit
        workflow.family.score_prediction(hit)


def _workflows_if(family: _Family, trust_before: Trust) -> list[_Key]:
    """The family's workflows, if its trust is another than before."""
    return [] if family.trust == trust_before else list(family.workflows)
