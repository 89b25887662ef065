"""Any sequence of requests, clock jumps, restarts and slow engines, against a model: over the store
in memory and over the database, which restarts and crashes open again."""

from __future__ import annotations

import copy
import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from starlette.testclient import TestClient

from kvflow.errors import GraphError
from kvflow.server import ServiceSettings, build_service
from kvflow.server.store import MemoryStore, WorkflowStore, encoding
from kvflow.server.store.sqlite import SQLiteStore
from kvflow.server.subscription import Subscription
from tests.server.conftest import FakeClock
from tests.server.workflow_model import ModelWorkflow, Refused, ServiceModel

# The long form is for `make soak`.
SOAK = bool(os.environ.get("KVFLOW_SOAK"))
EXAMPLES, STEPS = (2_000, 60) if SOAK else (25, 40)
EXAMPLES_ON_DISK = 500 if SOAK else 8

AGENTS = ["a", "b", "c"]
IDS = st.sampled_from(["w1", "w2"])
EVENT = st.fixed_dictionaries(
    {
        "type": st.sampled_from(["step_started", "step_finished"]),
        # Mostly agents there are, as one that is not refuses a whole list.
        "agent_id": st.sampled_from([*AGENTS * 6, "nobody"]),
        "step_id": st.sampled_from([None, None, "s1", "s2", "s3"]),
    }
)
# Chosen to meet joins, choices, loops with a limit and agents that nothing leads to.
BODY = st.builds(
    lambda workflow_id, joins, edges, entry, ttl_s: {
        "workflow_id": workflow_id,
        "agents": [{"agent_id": n, "join": j} for n, j in zip(AGENTS, joins, strict=True)],
        "edges": [
            {"source": s, "target": t, "kind": kind}
            | ({} if limit is None else {"max_iterations": limit})
            for (s, t), (kind, limit) in edges.items()
        ],
        "entry": sorted(entry),
        "ttl_s": ttl_s,
    },
    IDS,
    st.tuples(*[st.sampled_from(["all", "any"])] * len(AGENTS)),
    st.dictionaries(
        st.tuples(st.sampled_from(AGENTS), st.sampled_from(AGENTS)),
        st.tuples(st.sampled_from(["always", "choice"]), st.sampled_from([None, None, 1, 2])),
        max_size=6,
    ),
    st.sets(st.sampled_from(AGENTS), min_size=1),
    st.sampled_from([30, 60]),
)
CYCLE = st.builds(
    lambda workflow_id: {
        "workflow_id": workflow_id,
        "agents": [{"agent_id": name, "join": "any"} for name in AGENTS],
        "edges": [
            {"source": source, "target": target, "kind": "always"}
            for source, target in [("a", "b"), ("b", "c"), ("c", "a")]
        ],
        "entry": ["a"],
        "ttl_s": 60,
    },
    IDS,
)


class Engine:
    """A reader of the stream, as the protocol's document tells it to be."""

    def __init__(self, subscription: Subscription) -> None:
        self.subscription = subscription
        self.known: dict[str, dict[str, Any]] = {}
        self._seq = 0
        self.take(subscription.snapshot())

    def take(self, message: bytes) -> None:
        data = json.loads(message.decode().split("\ndata: ", 1)[1])
        assert data["seq"] == self._seq
        self._seq += 1
        for closed in data.get("closed", ()):
            del self.known[closed["workflow_id"]]
        for state in data.get("workflows", ()):
            self.known[state["workflow_id"]] = state

    def catch_up(self, client: TestClient) -> None:
        assert client.portal is not None
        while self.subscription.pending:
            make = client.portal.call(self.subscription.next_message)
            assert make is not None
            self.take(make())


class Machine(RuleBasedStateMachine):
    """The service through its API, with a clock that only moves when told."""

    @initialize(body=CYCLE)
    def start(self, body: dict[str, Any]) -> None:
        self.clock = FakeClock()
        self.prepare_store()
        self.model = ServiceModel()
        self._serve()
        self.create(body)

    def prepare_store(self) -> None:
        self.store: WorkflowStore = MemoryStore(100)

    def _serve(self) -> None:
        self.service = build_service(
            ServiceSettings(sweep_interval_s=3600, max_workflows=100),
            store=self.store,
            clock=self.clock,
        )
        self.client = TestClient(self.service.app)
        self.client.__enter__()
        self.connection = self.service.streams.subscribe("e1")
        self.engine = Engine(self.connection.__enter__())

    def _stop(self) -> None:
        self.connection.__exit__(None, None, None)
        self.client.__exit__(None, None, None)

    def teardown(self) -> None:
        if hasattr(self, "client"):
            self._stop()

    @rule(body=BODY | CYCLE)
    def create(self, body: dict[str, Any]) -> None:
        try:
            ModelWorkflow.of(body, 0.0)
        except GraphError:
            assert self.client.post("/v1/workflows", json=body).status_code == 422
            return
        expected = self.model.create(body, self.clock.now_s)
        assert self.client.post("/v1/workflows", json=body).status_code == expected

    @rule(workflow_id=IDS, events=st.lists(EVENT, min_size=1, max_size=8))
    def send_list(self, workflow_id: str, events: list[dict[str, Any]]) -> None:
        self._send(workflow_id, events, events)

    @rule(workflow_id=IDS, event=EVENT)
    def send_one(self, workflow_id: str, event: dict[str, Any]) -> None:
        self._send(workflow_id, event, [event])

    @precondition(lambda self: self.model.workflows)
    @rule(data=st.data(), count=st.integers(1, 6))
    def go_on(self, data: st.DataObject, count: int) -> None:
        """What a well-behaved program sends: the next starts, and the finishes of what runs."""
        workflow_id = data.draw(st.sampled_from(sorted(self.model.workflows)))
        one = copy.deepcopy(self.model.workflows[workflow_id])
        events: list[dict[str, Any]] = []
        for _ in range(count):
            finishes = [("step_finished", name) for name in AGENTS if one.runs.get(name)]
            starts = [("step_started", name) for name, steps in one.steps().items() if steps == 1]
            if not finishes + starts:
                break
            kind, agent_id = data.draw(st.sampled_from(finishes + starts))
            step_id: str | None = f"t{one.version}" if one.version % 3 else None
            if kind == "step_finished":
                step_id = one.runs[agent_id][-1]
            events.append({"type": kind, "agent_id": agent_id, "step_id": step_id})
            one.apply(events[-1])
        if events:
            self._send(workflow_id, events if len(events) > 1 else events[0], events)

    def _send(self, workflow_id: str, body: Any, events: list[dict[str, Any]]) -> None:
        answer = self.client.post(f"/v1/workflows/{workflow_id}/events", json=body)
        expected = 200
        try:
            changed, outcomes = self.model.events(workflow_id, events, self.clock.now_s)
        except Refused as refused:
            expected = refused.status
        assert answer.status_code == expected
        if expected != 200:
            return
        assert answer.json() == {
            "version": changed.version,
            "applied": len(outcomes) - outcomes.count("duplicate"),
            "duplicates": outcomes.count("duplicate"),
            "mispredictions": outcomes.count("misprediction"),
            "steps_to_execution": changed.steps(),
        }

    @rule(workflow_id=IDS)
    def delete(self, workflow_id: str) -> None:
        expected = self.model.delete(workflow_id)
        assert self.client.delete(f"/v1/workflows/{workflow_id}").status_code == expected

    @rule(by_s=st.sampled_from([1.0, 29.0, 31.0, 100.0]))
    def time_passes(self, by_s: float) -> None:
        self.clock.now_s += by_s
        self.model.expire(self.clock.now_s)

    @rule(by_s=st.sampled_from([5.0, 50.0]))
    def clock_is_set_back(self, by_s: float) -> None:
        """Nothing ends too early or is forgotten: deadlines stay, later ones count from now."""
        self.sweep()  # what was over and not yet looked at would be back
        self.clock.now_s -= by_s

    @rule()
    def sweep(self) -> None:
        assert self.client.portal is not None
        self.client.portal.call(self.service.workflows.sweep)

    @rule()
    def restart(self) -> None:
        self._stop()
        self._serve()

    @rule()
    def engine_reads(self) -> None:
        """It reads what has piled up, after which it knows what the service knows."""
        self.sweep()
        self.engine.catch_up(self.client)
        assert {key: state["steps_to_execution"] for key, state in self.engine.known.items()} == {
            key: one.steps() for key, one in self.model.workflows.items()
        }
        assert all(
            state["version"] == self.model.workflows[key].version
            for key, state in self.engine.known.items()
        )

    @invariant()
    def same_workflows(self) -> None:
        if not hasattr(self, "client"):
            return
        answer = self.client.get("/v1/workflows").json()
        seen = {view["workflow_id"]: view for view in answer["workflows"]}
        assert seen.keys() == self.model.workflows.keys()
        for key, view in seen.items():
            one = self.model.workflows[key]
            assert view["version"] == one.version
            assert view["steps_started"] == one.started
            assert view["mispredictions"] == one.marking.mispredictions
            assert {a["agent_id"]: a["running"] for a in view["agents"]} == {
                name: len(one.runs.get(name, ())) for name in AGENTS
            }
            assert view["expires_in_s"] == one.expires_at_s - self.clock.now_s


class DurableMachine(Machine):
    """The same over an SQLite database: its states are written early and mostly read back."""

    def prepare_store(self) -> None:
        self.folder = tempfile.TemporaryDirectory()
        self.path = Path(self.folder.name) / "0.db"
        self.patch = pytest.MonkeyPatch()
        self.patch.setattr(encoding, "_JOURNAL_CHARS", 100)

    def _serve(self) -> None:
        self.store = SQLiteStore(self.path, 100, in_memory=1)
        super()._serve()

    @rule()
    def crash(self) -> None:
        """The service goes on with the files as a killed process leaves them."""
        left = self.path.with_name(f"{int(self.path.stem) + 1}.db")
        for suffix in ("", "-wal"):
            shutil.copy(f"{self.path}{suffix}", f"{left}{suffix}")
        self._stop()
        self.path = left
        self._serve()

    def teardown(self) -> None:
        super().teardown()
        if hasattr(self, "folder"):
            self.patch.undo()
            self.folder.cleanup()


Machine.TestCase.settings = settings(
    max_examples=EXAMPLES, stateful_step_count=STEPS, deadline=None, derandomize=True
)
DurableMachine.TestCase.settings = settings(
    Machine.TestCase.settings, max_examples=EXAMPLES_ON_DISK
)
test_workflow_machine = Machine.TestCase
test_workflow_machine_on_disk = DurableMachine.TestCase
