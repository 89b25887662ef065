"""Every field of an agent and of an edge survives the way over the wire."""

from dataclasses import fields

from kvflow.graph import Agent, AgentStepGraph, Edge
from kvflow.graph_specs import agents_from, edges_from, graph_specs
from kvflow.protocol import AgentSpec, EdgeSpec

AGENT = Agent("a", join="any", fixed_prefix_tokens=7, expected_duration_s=1.5)
EDGE = Edge("a", "a", "choice", probability=0.5, expected_duration_s=2.5, max_iterations=3)


def test_no_field_is_lost() -> None:
    graph = AgentStepGraph([AGENT, Agent("b")], [EDGE, Edge("a", "b")], ["a"])
    agents, edges = graph_specs(graph)
    sent = [AgentSpec.model_validate_json(one.model_dump_json()) for one in agents]
    sent_edges = [EdgeSpec.model_validate_json(one.model_dump_json()) for one in edges]
    assert AgentStepGraph(agents_from(sent), edges_from(sent_edges), graph.entry) == graph


def test_the_examples_set_every_field_and_the_wire_has_each() -> None:
    for example, spec in ((AGENT, AgentSpec), (EDGE, EdgeSpec)):
        plain = type(example)(*(getattr(example, f.name) for f in fields(example)[:2]))
        names = {field.name for field in fields(example)}
        assert names == set(spec.model_fields)
        unset = {n for n in names if getattr(example, n) == getattr(plain, n)}
        assert unset <= {"agent_id", "source", "target", "join"}


def test_what_is_not_known_is_left_out() -> None:
    assert AgentSpec(agent_id="a").model_dump() == {
        "agent_id": "a",
        "join": "all",
        "fixed_prefix_tokens": None,
    }
    assert EdgeSpec(source="a", target="b").model_dump() == {
        "source": "a",
        "target": "b",
        "kind": "always",
    }
