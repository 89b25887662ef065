from kvflow.graph import Agent, AgentStepGraph, Edge, WorkflowState
from kvflow.graph.networkx_io import to_dot, to_mermaid
from tests.graph.builders import graph, play

REVIEW = graph("plan write|any review done", "plan>write write>review review?write review?done")


def test_mermaid() -> None:
    assert to_mermaid(REVIEW) == (
        "flowchart TD\n"
        '    n0[["plan"]]\n'
        '    n1["write<br/>join any"]\n'
        '    n2["review"]\n'
        '    n3["done"]\n'
        "    n0 --> n1\n"
        "    n1 --> n2\n"
        "    n2 -.-> n1\n"
        "    n2 -.-> n3\n"
    )


def test_mermaid_with_a_state() -> None:
    state = play(
        WorkflowState(REVIEW), "+plan -plan +write -write +review -review +write +write -write"
    )
    play(state, "-write +review +review")
    assert to_mermaid(REVIEW, state) == (
        "flowchart TD\n"
        '    n0[["plan<br/>never"]]\n'
        '    n1["write<br/>join any<br/>steps 1"]\n'
        '    n2["review<br/>running 2 times<br/>steps 0"]\n'
        '    n3["done<br/>steps 1"]\n'
        "    n0 --> n1\n"
        "    n1 --> n2\n"
        "    n2 -.-> n1\n"
        "    n2 -.-> n3\n"
    )
    play(state, "-review -review")
    assert 'n2 -.->|"2 marks"| n3' in to_mermaid(REVIEW, state)


def test_dot() -> None:
    assert to_dot(REVIEW) == (
        "digraph {\n"
        "    node [shape=box];\n"
        '    "plan" [label="plan", peripheries=2];\n'
        '    "write" [label="write\\njoin any"];\n'
        '    "review" [label="review"];\n'
        '    "done" [label="done"];\n'
        '    "plan" -> "write";\n'
        '    "write" -> "review";\n'
        '    "review" -> "write" [style=dashed];\n'
        '    "review" -> "done" [style=dashed];\n'
        "}\n"
    )


def test_dot_with_a_state() -> None:
    state = play(WorkflowState(graph("a b c", "a?b a>c")), "+a -a +c")
    assert to_dot(state.graph, state) == (
        "digraph {\n"
        "    node [shape=box];\n"
        '    "a" [label="a\\nnever", peripheries=2];\n'
        '    "b" [label="b\\nsteps 1"];\n'
        '    "c" [label="c\\nrunning\\nsteps 0"];\n'
        '    "a" -> "b" [style=dashed, label="1 mark"];\n'
        '    "a" -> "c";\n'
        "}\n"
    )


def test_names_are_escaped() -> None:
    odd = AgentStepGraph([Agent('a"<b>#\\')], [Edge('a"<b>#\\', 'a"<b>#\\')], ['a"<b>#\\'])
    assert 'n0[["a#quot;#lt;b#gt;#35;\\"]]' in to_mermaid(odd)
    assert '"a\\"<b>#\\\\" -> "a\\"<b>#\\\\"' in to_dot(odd)
