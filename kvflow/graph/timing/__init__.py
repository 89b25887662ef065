"""How long steps take, and in how many seconds each agent can run."""

from kvflow.graph.timing.durations import FamilyDurations
from kvflow.graph.timing.expected import expected_times
from kvflow.graph.timing.step_times import StepTimes

__all__ = ["FamilyDurations", "StepTimes", "expected_times"]
