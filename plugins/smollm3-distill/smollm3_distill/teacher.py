"""What a teacher says of each supervised token: its k most probable tokens, with log-probabilities, in few bytes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch

from smollm3_distill.divergence import outcomes

if TYPE_CHECKING:
    from torch import Tensor

LEAST = torch.finfo(torch.float16).min
"""An outcome of probability 0 is stored with this log-probability: its logarithm times 0 must be 0."""


def most_probable(logits: Tensor, k: int, temperature: float) -> tuple[Tensor, Tensor]:
    """Ids (n, k) of the k most probable tokens, and log-probabilities (n, k + 1) of them and of all others together.

    logits (n, V). If k is V or more, both are (n, V). The ids are int32, the log-probabilities float16.
    """
    ids = logits.topk(min(k, logits.shape[1]), dim=1).indices
    return ids.int(), outcomes(logits, ids, temperature).clamp(min=LEAST).half()


def taught(values: Sequence[Mapping[str, Tensor]]) -> tuple[Tensor, Tensor]:
    """The ids and log-probabilities of all supervised tokens of a batch, from those of its examples: N rows each."""
    return torch.cat([v["ids"] for v in values]), torch.cat([v["logps"] for v in values])


def normalized(logps: Tensor, dtype: torch.dtype) -> Tensor:
    """The stored log-probabilities in `dtype`, as a distribution: rounding has changed the sum of probabilities."""
    return logps.to(dtype).log_softmax(1)
