"""Workflows in short notation, learned from as the service does."""

from __future__ import annotations

from kvflow.graph.learning import LearnedState, TransitionModel


def play(state: LearnedState, events: str) -> LearnedState:
    """``"+a -a +b"``: start a, finish a, start b. The model learns after each."""
    for word in events.split():
        (state.start if word[0] == "+" else state.finish)(word[1:])
        state.model.learn(state.take_lessons())
    return state


def whole(model: TransitionModel, events: str) -> LearnedState:
    """One workflow from its beginning to its end."""
    state = play(LearnedState(model), events)
    state.end()
    model.learn(state.take_lessons())
    return state


def chain(agent_ids: str) -> str:
    """One agent after the other."""
    return " ".join(f"+{agent_id} -{agent_id}" for agent_id in agent_ids)
