"""Planning of KV prefetch: storage to host to device, before the agent is called. Pure."""

from kvflow.prefetch.admission import WorkflowAdmission, WorkflowDemand
from kvflow.prefetch.base import (
    Candidate,
    Link,
    Place,
    Plan,
    PlannedCopy,
    PlannerLimits,
    PlannerView,
    Refusal,
    Stretch,
)
from kvflow.prefetch.holding import Holding, WaitingRequest
from kvflow.prefetch.planner import plan_prefetch
from kvflow.prefetch.rates import LoadChoice, RateEstimator, choose_load
from kvflow.prefetch.timing import StepTimer
from kvflow.prefetch.transitions import TransitionCounts
from kvflow.prefetch.trust import PredictionTrust, Trust
from kvflow.prefetch.usage import PrefetchUsage

__all__ = [
    "Candidate",
    "Holding",
    "Link",
    "LoadChoice",
    "Place",
    "Plan",
    "PlannedCopy",
    "PlannerLimits",
    "PlannerView",
    "PredictionTrust",
    "PrefetchUsage",
    "RateEstimator",
    "Refusal",
    "StepTimer",
    "Stretch",
    "TransitionCounts",
    "Trust",
    "WaitingRequest",
    "WorkflowAdmission",
    "WorkflowDemand",
    "choose_load",
    "plan_prefetch",
]
