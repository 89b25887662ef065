"""What was learned of all families of workflows."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping

from kvflow.graph.learning.base import MAX_FAMILIES, FamilyKey
from kvflow.graph.learning.model import TransitionModel

__all__ = ["LearnedFamilies", "family_of"]


def family_of(name: str | None, first_agent: str) -> str:
    """The family of a workflow: its name, or if it has none the agent that it began with.

    Workflows that begin alike go on alike, mostly; which agents one has is known at its end only.
    """
    return name if name else f"from:{first_agent}"


class LearnedFamilies:
    """A model per namespace, client and family; that of the family used least recently goes first.

    Not safe for use by several threads at once.
    """

    __slots__ = ("_models", "_most")

    def __init__(self, most: int = MAX_FAMILIES) -> None:
        self._models: OrderedDict[FamilyKey, TransitionModel] = OrderedDict()
        self._most = most

    def __len__(self) -> int:
        return len(self._models)

    def model(self, key: FamilyKey) -> TransitionModel:
        """The family's model, made anew if nothing is known. O(1)."""
        model = self._models.get(key)
        if model is None:
            model = TransitionModel()
            self.put(key, model)
        self._models.move_to_end(key)
        return model

    def get(self, key: FamilyKey) -> TransitionModel | None:
        """The family's model, if anything is known; does not count as use."""
        return self._models.get(key)

    def put(self, key: FamilyKey, model: TransitionModel) -> None:
        """Take a model that was learned before, as the one used last."""
        self._models[key] = model
        self._models.move_to_end(key)
        if len(self._models) > self._most:
            self._models.popitem(last=False)

    @property
    def models(self) -> Mapping[FamilyKey, TransitionModel]:
        """Of all families, the one used least recently first."""
        return self._models

    def forget(self, key: FamilyKey) -> bool:
        """Forget a family; whether it was known. Workflows under way go on with what they have."""
        return self._models.pop(key, None) is not None
