"""Log-probabilities of supervised tokens, in padded and in flat batches."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

import torch

from smollm3_finetune.api.batches import SEGMENT_PARENTS, has_supervised_logits
from smollm3_finetune.api.data import IGNORE_INDEX

if TYPE_CHECKING:
    from torch import Tensor, nn

MODEL_INPUTS = (
    "input_ids", "attention_mask", "token_type_ids", "position_ids",
    "cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k", SEGMENT_PARENTS,
)  # fmt: skip
"""The names of a batch that are passed to the model."""

_requested: ContextVar[tuple[Callable[..., Any], tuple[Any, ...]]] = ContextVar("requested")
"""The function of `token_values` and its tensors, while the model runs. As an argument of a compiled model, each new
function would be compiled anew."""


def token_logps(model: nn.Module, batch: Mapping[str, Any]) -> Tensor:
    """See `smollm3_finetune.api.token_logps`."""
    labels = _predicted(batch)  # (B, T)
    length = labels.shape[1]
    inputs = {name: batch[name] for name in MODEL_INPUTS if name in batch}
    if has_supervised_logits(model):
        out = model(**inputs, labels=labels, token_logps=True, use_cache=False)
        if getattr(out, "token_logps", None) is not None:
            found: Tensor = out.token_logps[:, -length:]  # after tokens of prompt tuning
            return found
    logits = model(**inputs, use_cache=False).logits[:, -length:]  # (B, T, V)
    return at_labels(log_probabilities(*supervised(logits, labels)), labels)


def token_values(model: nn.Module, batch: Mapping[str, Any], function: Callable[..., Any], *given: Tensor) -> Any:
    """See `smollm3_finetune.api.token_values`."""
    labels = _predicted(batch)  # (B, T)
    inputs = {name: batch[name] for name in MODEL_INPUTS if name in batch}
    count = int((labels[:, 1:] != IGNORE_INDEX).sum())
    for values in given:
        if len(values) != count:
            raise ValueError(f"the batch has {count} supervised tokens, but a tensor has values of {len(values)}")

    def of_wide_logits(logits: Tensor, targets: Tensor, *rows: Tensor) -> Any:
        wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
        return function(wide, targets, *(values.to(wide.device) for values in rows))

    if has_supervised_logits(model):
        token = _requested.set((of_wide_logits, given))
        try:
            out = model(**inputs, labels=labels, token_values=True, use_cache=False)
        finally:
            _requested.reset(token)
        if getattr(out, "token_values", None) is not None:
            return out.token_values
    logits = model(**inputs, use_cache=False).logits[:, -labels.shape[1] :]  # (B, T, V)
    return of_wide_logits(*supervised(logits, labels), *given)


def requested_values() -> tuple[Callable[..., Any], tuple[Any, ...]]:
    """The function of the current `token_values`, and the tensors that it gets."""
    return _requested.get()


def supervised(values: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """What predicts each supervised token, and the token: (N, …) and (N,). values (B, T, …), labels (B, T)."""
    targets = labels[:, 1:].to(values.device)  # position t predicts token t + 1
    where = targets != IGNORE_INDEX
    return values[:, :-1][where], targets[where]


def log_probabilities(logits: Tensor, targets: Tensor) -> Tensor:
    """The log-probability of each target, in float32 or wider. logits (N, V), targets (N,); returns (N,)."""
    wide = torch.log_softmax(logits, -1, dtype=torch.promote_types(logits.dtype, torch.float32))
    return wide.gather(1, targets[:, None])[:, 0]


def at_labels(values: Tensor, labels: Tensor) -> Tensor:
    """The values (N,) of the supervised tokens at the places of their labels (B, T), which may be more; 0 elsewhere."""
    where = labels.to(values.device) != IGNORE_INDEX
    where[:, 0] = False
    return values.new_zeros(where.shape).masked_scatter(where, values)


def row_sums(values: Tensor, batch: Mapping[str, Any]) -> Tensor:
    """See `smollm3_finetune.api.row_sums`."""
    boundaries = batch.get("cu_seq_lens_q")
    if boundaries is None:
        return values.sum(1)
    sums = [row.sum() for row in values[0].split(boundaries.diff().tolist())]
    if (parents := batch.get(SEGMENT_PARENTS)) is not None:
        continued = set(parents.tolist())
        sums = [total for i, total in enumerate(sums) if i not in continued]
    return torch.stack(sums)


def _predicted(batch: Mapping[str, Any]) -> Tensor:
    """The labels of a batch (B, T), without those of tokens that no token of their row precedes."""
    labels: Tensor = batch["labels"]
    first = torch.zeros_like(labels, dtype=torch.bool)
    first[:, 0] = True
    if (boundaries := batch.get("cu_seq_lens_q")) is not None:
        first[0, boundaries[:-1].long()] = True
    elif (mask := batch.get("attention_mask")) is not None and mask.ndim == 2:
        first[:, 1:] |= mask[:, :-1] == 0
    return labels.masked_fill(first, IGNORE_INDEX)
