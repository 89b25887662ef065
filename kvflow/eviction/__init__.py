"""The eviction order, the index that keeps it, and what it is learned from. Pure."""

from kvflow.eviction.clairvoyant import CachedCall, clairvoyant_hit_tokens
from kvflow.eviction.clairvoyant_runs import PageRun, RunCall, RunCalls, clairvoyant_hit_pages
from kvflow.eviction.index import EvictionIndex
from kvflow.eviction.learning import (
    AgentCall,
    CallLearner,
    Conversation,
    Lesson,
    common_prefix_length,
)
from kvflow.eviction.order import EvictionKey, NodeKind, eviction_key, is_weighted
from kvflow.eviction.ownership import Owner, OwnershipMap

__all__ = [
    "AgentCall",
    "CachedCall",
    "CallLearner",
    "Conversation",
    "EvictionIndex",
    "EvictionKey",
    "Lesson",
    "NodeKind",
    "Owner",
    "OwnershipMap",
    "PageRun",
    "RunCall",
    "RunCalls",
    "clairvoyant_hit_pages",
    "clairvoyant_hit_tokens",
    "common_prefix_length",
    "eviction_key",
    "is_weighted",
]
