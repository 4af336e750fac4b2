"""Measures with two short rows whether rows in one sequence are independent in a loaded model."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

from smollm3_finetune.api import seeded
from smollm3_finetune.api.batches import flatten, flatten_branches
from smollm3_finetune.api.data import BRANCHES
from smollm3_finetune.api.helpers import evaluating
from smollm3_finetune.batching.attention import RowsNotApart
from smollm3_finetune.errors import is_resource_error

if TYPE_CHECKING:
    from torch import Tensor, nn

LENGTHS = (13, 8)
"""Tokens of the two rows."""


class RowProbe:
    """Create it before the attention is replaced; call `check` afterwards."""

    def __init__(self, model: nn.Module, vocabulary: int) -> None:
        self.model = model
        generator = torch.Generator().manual_seed(0)
        self.rows = [torch.randint(vocabulary, (n,), generator=generator).tolist() for n in LENGTHS]
        self.other = [(token + 1 + vocabulary // 2) % vocabulary for token in self.rows[0]]
        with _failures_as_rows_not_apart(), measuring(model):
            self.alone = [self._logits({"input_ids": torch.tensor([row]), "use_cache": False}) for row in self.rows]

    def check(self, tolerance: float, influence: float) -> None:
        """Raises RowsNotApart if the logits of the rows in one sequence differ from those of each row alone.

        `tolerance` limits that difference; it includes rounding, since the shapes differ. `influence` limits the change
        of the second row's logits if the first row changes, at equal shapes.
        """
        first, second = LENGTHS
        with _failures_as_rows_not_apart(), measuring(self.model):
            together = self._logits(self._flat(self.rows))  # (T, V)
            changed = self._logits(self._flat([self.other, self.rows[1]]))
        if together.shape[0] != first + second:
            raise RowsNotApart(
                f"the model returned logits at {together.shape[0]} positions for {first + second} tokens"
            )
        moved = _distance(changed[first:], together[first:])
        if not moved <= influence:
            raise RowsNotApart(f"the logits of a row change by {moved:.1%} if the row before it changes")
        error = max(_distance(together[:first], self.alone[0]), _distance(together[first:], self.alone[1]))
        if not error <= tolerance:
            raise RowsNotApart(f"the logits of rows in one sequence differ by {error:.1%} from those of each row alone")

    def check_branches(self, tolerance: float, influence: float) -> None:
        """Raises RowsNotApart if two rows with a shared prefix differ from those rows alone, or influence each other.

        The limits are those of `check`.
        """
        row, other = self.rows[0], self.other
        half = len(row) // 2
        with _failures_as_rows_not_apart(), measuring(self.model):
            together = self._logits(self._branched(row, half, row[half:], other[half:]))  # (T, V)
            changed = self._logits(self._branched(row, half, other[half:], other[half:]))
            alone = self._logits({"input_ids": torch.tensor([[*row[:half], *other[half:]]]), "use_cache": False})
        if together.shape[0] != 2 * len(row) - half:
            raise RowsNotApart(
                f"the model returned logits at {together.shape[0]} positions for {2 * len(row) - half} tokens"
            )
        last = slice(len(row), None)
        moved = _distance(changed[last], together[last])
        if not moved <= influence:
            raise RowsNotApart(f"the logits of an answer change by {moved:.1%} if the other answer changes")
        error = max(_distance(together[: len(row)], self.alone[0]), _distance(together[last], alone[half:]))
        if not error <= tolerance:
            raise RowsNotApart(f"the logits after a shared prompt differ by {error:.1%} from those of each row alone")

    def _branched(self, row: list[int], prefix: int, *branches: list[int]) -> dict[str, Any]:
        ids = [*row[:prefix], *(token for branch in branches for token in branch)]
        example = {"input_ids": ids, "labels": ids, BRANCHES: [prefix, *map(len, branches)]}
        batch = flatten_branches([example])
        del batch["labels"]
        return batch

    def _flat(self, rows: list[list[int]]) -> dict[str, Any]:
        batch = flatten([{"input_ids": row, "labels": row} for row in rows])
        del batch["labels"]
        return batch

    def _logits(self, batch: dict[str, Any]) -> Tensor:
        logits: Tensor = self.model(**on_device(batch, self.model)).logits[0]
        return logits


@contextmanager
def _failures_as_rows_not_apart() -> Iterator[None]:
    """Converts an error of the model into RowsNotApart; out of memory stays as it is."""
    try:
        yield
    except (RuntimeError, TypeError, ValueError) as e:
        if is_resource_error(e):
            raise
        raise RowsNotApart(str(e)) from e


@contextmanager
def measuring(model: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients; restores mode and random state afterwards."""
    device = next(model.parameters()).device
    with evaluating(model), torch.no_grad(), seeded(0, str(device)):
        yield


def on_device(batch: dict[str, Any], model: nn.Module) -> dict[str, Any]:
    """A batch with its tensors on the model's device."""
    device = next(model.parameters()).device
    return {k: v.to(device) if isinstance(v, torch.Tensor) else v for k, v in batch.items()}


def _distance(a: Tensor, b: Tensor) -> float:
    """Relative norm of the difference."""
    return float((a.double() - b.double()).norm() / b.double().norm().clamp(min=1e-30))
