"""The values of a reference for the examples of a batch, as an objective returns them, checked."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from smollm3_finetune.errors import PluginError

if TYPE_CHECKING:
    from torch import Tensor, nn

    from smollm3_finetune.api import ReferenceObjective

NAME = "reference"
"""The name in a batch of the values of its examples."""

Values = Sequence[Mapping[str, "Tensor"]]
"""One mapping for each example."""
Refer = Callable[["nn.Module", Any, Sequence[int]], Any]
"""`(model, batch, examples)` returns the batch with the values of these examples, which are indices of a dataset."""


@dataclass(frozen=True, kw_only=True)
class EachBatch:
    """Computes the values of a batch when they are needed."""

    objective: ReferenceObjective
    context: Callable[[nn.Module], AbstractContextManager[nn.Module]]
    """Changes the trained model into the reference, and back when it ends."""

    def __call__(self, model: nn.Module, batch: Any, examples: Sequence[int]) -> Any:
        """The batch with the values of its examples, computed by the reference that `model` becomes for it."""
        return {**batch, NAME: self._values(model, batch, len(examples))}

    def in_step(self, model: nn.Module, batch: Any) -> Any:
        """The same for a batch whose examples are not known."""
        return {**batch, NAME: self._values(model, batch, None)}

    def _values(self, model: nn.Module, batch: Any, count: int | None) -> Values:
        with self.context(model) as reference:
            return values_of(self.objective, reference, batch, count)


def values_of(objective: ReferenceObjective, reference: nn.Module, batch: Any, count: int | None) -> Values:
    """The values of the examples of a batch; `count` is their number, if it is known.

    Raises PluginError if `reference_values` does not return one mapping of tensors for each example.
    """
    import torch

    found: Any = objective.reference_values(reference, batch)
    title = f"reference_values() of {type(objective).__name__}"
    if isinstance(found, Mapping | torch.Tensor) or not isinstance(found, Sequence):
        raise PluginError(
            f"{title} returned {_article(found)}; expected a sequence with one mapping for each example",
            hint='return [{"logps": logps} for logps in row_logps(model, batch)]',
        )
    if count is not None and len(found) != count:
        raise PluginError(
            f"{title} returned {len(found)} mappings for a batch of {count} examples",
            hint="return one mapping for each example, also if an example has several rows",
        )
    for values in found:
        if not isinstance(values, Mapping) or not all(isinstance(v, torch.Tensor) for v in values.values()):
            raise PluginError(f"{title} returned a sequence with {_article(values)}; expected mappings of tensors")
    return [{name: value.detach() for name, value in values.items()} for values in found]


def _article(value: Any) -> str:
    name = type(value).__name__
    return f"{'an' if name[:1].lower() in 'aeiou' else 'a'} {name}"
