"""``POST /v1/kv_hints``: what an orchestrator knows of cached prefixes, and what became of it."""

from kvflow.server.kv_hints.actions import KVHints
from kvflow.server.kv_hints.envelope import ActionAnswer, KVHintsAnswer, KVHintsEnvelope
from kvflow.server.kv_hints.routes import kv_hint_routes

__all__ = ["ActionAnswer", "KVHints", "KVHintsAnswer", "KVHintsEnvelope", "kv_hint_routes"]
