"""Whether rows that share a sequence stay apart in a loaded model: measured with two short rows, not assumed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

from smollm3_finetune.api import seeded
from smollm3_finetune.api.batches import flatten
from smollm3_finetune.batching.attention import RowsNotApart
from smollm3_finetune.errors import is_resource_error

if TYPE_CHECKING:
    from torch import Tensor, nn

LENGTHS = (13, 8)


class RowProbe:
    """Made before the attention is switched, and asked afterwards."""

    def __init__(self, model: nn.Module, vocabulary: int) -> None:
        self.model = model
        generator = torch.Generator().manual_seed(0)
        self.rows = [torch.randint(vocabulary, (n,), generator=generator).tolist() for n in LENGTHS]
        self.other = [(token + 1 + vocabulary // 2) % vocabulary for token in self.rows[0]]
        with _told(), measuring(model):
            self.alone = [self._logits({"input_ids": torch.tensor([row]), "use_cache": False}) for row in self.rows]

    def check(self, tolerance: float, influence: float) -> None:
        """Raises RowsNotApart where the rows, in one sequence, compute something else than each for itself.

        `tolerance` is for other shapes, which round otherwise; `influence`, of one row on the next, for equal ones.
        """
        first, second = LENGTHS
        with _told(), measuring(self.model):
            together = self._logits(self._flat(self.rows))  # (T, V)
            changed = self._logits(self._flat([self.other, self.rows[1]]))
        if together.shape[0] != first + second:
            raise RowsNotApart(f"{first + second} tokens gave {together.shape[0]} positions")
        moved = _distance(changed[first:], together[first:])
        if not moved <= influence:
            raise RowsNotApart(f"a row moves by {moved:.1%} when the one before it changes")
        off = max(_distance(together[:first], self.alone[0]), _distance(together[first:], self.alone[1]))
        if not off <= tolerance:
            raise RowsNotApart(f"rows in one sequence are {off:.1%} from what each of them gives alone")

    def _flat(self, rows: list[list[int]]) -> dict[str, Any]:
        batch = flatten([{"input_ids": row, "labels": row} for row in rows])
        del batch["labels"]
        return batch

    def _logits(self, batch: dict[str, Any]) -> Tensor:
        logits: Tensor = self.model(**on_device(batch, self.model)).logits[0]
        return logits


@contextmanager
def _told() -> Iterator[None]:
    """What a model cannot compute becomes RowsNotApart."""
    try:
        yield
    except (RuntimeError, TypeError, ValueError) as e:
        if is_resource_error(e):
            raise
        raise RowsNotApart(str(e)) from e


@contextmanager
def measuring(model: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients; mode and random state are afterwards as before."""
    device = next(model.parameters()).device
    training = model.training
    model.eval()
    try:
        with torch.no_grad(), seeded(0, str(device)):
            yield
    finally:
        model.train(training)


def on_device(batch: dict[str, Any], model: nn.Module) -> dict[str, Any]:
    """A batch with its tensors where the model is."""
    device = next(model.parameters()).device
    return {k: v.to(device) if isinstance(v, torch.Tensor) else v for k, v in batch.items()}


def _distance(a: Tensor, b: Tensor) -> float:
    """Relative norm of the difference."""
    return float((a.double() - b.double()).norm() / b.double().norm().clamp(min=1e-30))
