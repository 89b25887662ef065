"""The order in which agents run, learned from their calls where no graph was declared."""

from kvflow.graph.learning.base import FamilyKey, Lesson
from kvflow.graph.learning.export import declarable_graph
from kvflow.graph.learning.families import LearnedFamilies, family_of
from kvflow.graph.learning.model import TransitionModel
from kvflow.graph.learning.score import LOST_BELOW, USED_FROM, HeldOutScore
from kvflow.graph.learning.state import LearnedState

__all__ = [
    "LOST_BELOW",
    "USED_FROM",
    "FamilyKey",
    "HeldOutScore",
    "LearnedFamilies",
    "LearnedState",
    "Lesson",
    "TransitionModel",
    "declarable_graph",
    "family_of",
]
