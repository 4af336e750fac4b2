"""The rows of a batch and their supervised tokens, which follow each other in the same order in every kind of batch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from smollm3_finetune.api import IGNORE_INDEX, row_sums, token_logps

if TYPE_CHECKING:
    from torch import Tensor, nn


def row_lengths(batch: Mapping[str, Any]) -> Tensor:
    """The number of supervised tokens of each row (answer) of a padded, flat or branched batch. (R,)"""
    return row_sums(batch["labels"] != IGNORE_INDEX, batch)


def supervised_logps(model: nn.Module, batch: Mapping[str, Any]) -> Tensor:
    """The log-probabilities of the supervised tokens of all rows, row after row: one forward of the model. (N,)"""
    found = token_logps(model, batch)
    return found[batch["labels"].to(found.device) != IGNORE_INDEX]


def summed(values: Tensor, lengths: Tensor) -> Tensor:
    """The sum of values (N,) over the supervised tokens of each row. lengths (R,); returns (R,)."""
    return torch.stack([row.sum() for row in values.split(lengths.tolist())])


def reference_of(batch: Mapping[str, Any], like: Tensor) -> Tensor:
    """The log-probabilities of the supervised tokens under the reference, with the dtype and device of `like`. (N,)"""
    return torch.cat([example["logps"] for example in batch["reference"]]).to(like)
