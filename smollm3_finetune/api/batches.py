"""Batches of rows: padded, or flat, which is one sequence without padding and without an attention mask."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from smollm3_finetune.api.data import IGNORE_INDEX

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedTokenizerBase

Collate = Callable[[list[dict[str, Any]]], dict[str, Any]]


def flatten(examples: Sequence[Mapping[str, Sequence[int]]]) -> dict[str, Any]:
    """Put rows of `input_ids` and `labels` into one sequence, as arguments of a causal language model.

    Returns tensors (1, T), with T the sum of the lengths. The first label of each row is ignored, because it would be
    predicted from the last token of the previous row. The row boundaries have the names that transformers passes to
    the attention. `use_cache` is False, because with a cache the model's mask would not follow `position_ids`.
    Raises ValueError if the numbers of tokens and labels of a row differ.
    """
    rows = [np.array(e["input_ids"], dtype=np.int64) for e in examples]
    labels = [np.array(e["labels"], dtype=np.int64) for e in examples]
    lengths = [len(row) for row in rows]
    for length, row in zip(lengths, labels, strict=True):
        if len(row) != length:
            raise ValueError(f"an example has {length} input_ids but {len(row)} labels")
        row[:1] = IGNORE_INDEX
    boundaries = torch.from_numpy(np.cumsum([0, *lengths], dtype=np.int32))  # (rows + 1,)
    return {
        "input_ids": _one_sequence(rows),
        "labels": _one_sequence(labels),
        "position_ids": _one_sequence([np.arange(n) for n in lengths]),
        "cu_seq_lens_q": boundaries,
        "cu_seq_lens_k": boundaries,
        "max_length_q": max(lengths),
        "max_length_k": max(lengths),
        "use_cache": False,
    }


def _one_sequence(rows: Sequence[np.ndarray[Any, np.dtype[np.int64]]]) -> torch.Tensor:
    return torch.from_numpy(np.concatenate(rows)[None])  # (1, T)


def pad(examples: Sequence[Mapping[str, Sequence[int]]], tokenizer: PreTrainedTokenizerBase) -> dict[str, torch.Tensor]:
    """See `smollm3_finetune.api.pad_rows`."""
    filler = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id or 0
    longest = max(len(e["input_ids"]) for e in examples)

    def padded(values: Sequence[int], filler: int) -> list[int]:
        return [*values, *[filler] * (longest - len(values))]

    return {
        "input_ids": torch.tensor([padded(e["input_ids"], filler) for e in examples]),
        "labels": torch.tensor([padded([IGNORE_INDEX, *e["labels"][1:]], IGNORE_INDEX) for e in examples]),
        "attention_mask": torch.tensor([padded([1] * len(e["input_ids"]), 0) for e in examples]),
    }


def has_supervised_logits(model: nn.Module) -> bool:
    """Whether the model, or a model inside it, currently computes logits at supervised tokens only."""
    return any(_is_supervised(module.__dict__.get("forward")) for module in model.modules())


def _is_supervised(forward: Any) -> bool:
    """Whether `forward` computes supervised logits, or wraps one that does: accelerate wraps it for mixed precision."""
    while forward is not None:
        if hasattr(forward, "supervised"):
            return True
        forward = getattr(forward, "__wrapped__", None)
    return False
