"""The rows of a batch: how many there are, and the tokens of each."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from smollm3_finetune.api import IGNORE_INDEX, row_sums

if TYPE_CHECKING:
    from torch import Tensor


def count_rows(batch: Mapping[str, Any]) -> int:
    """The number of rows (answers) of a padded, flat or branched batch."""
    return len(row_sums(torch.zeros_like(batch["labels"]), batch))


def row_lengths(batch: Mapping[str, Any]) -> Tensor:
    """The number of supervised tokens of each row, at least 1. (R,)"""
    return row_sums(batch["labels"] != IGNORE_INDEX, batch).clamp(min=1)


def reference_of(batch: Mapping[str, Any], name: str) -> Tensor:
    """A value of the reference for every example of a batch, stacked: (E, …), on the device of the batch."""
    values = torch.stack([example[name] for example in batch["reference"]])
    return values.to(batch["input_ids"].device)
