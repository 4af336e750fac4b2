"""Batches of rows: padded, or one after another in one sequence without padding and attention mask."""

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
    """Rows of `input_ids` and `labels` as arguments of a causal language model, (1, T) each with T the sum of lengths.

    The first label of a row is ignored: it would be learned from the last token of the row before. The borders of the
    rows go to the attention by the names that transformers has for them; the cache is off, since with one the
    model's mask would no longer follow `position_ids`. Raises ValueError for a row with a label too few or too many.
    """
    rows = [np.array(e["input_ids"], dtype=np.int64) for e in examples]
    labels = [np.array(e["labels"], dtype=np.int64) for e in examples]
    lengths = [len(row) for row in rows]
    for length, row in zip(lengths, labels, strict=True):
        if len(row) != length:
            raise ValueError(f"an example has {length} input_ids and {len(row)} labels")
        row[:1] = IGNORE_INDEX
    borders = torch.from_numpy(np.cumsum([0, *lengths], dtype=np.int32))  # (rows + 1,)
    return {
        "input_ids": _one_sequence(rows),
        "labels": _one_sequence(labels),
        "position_ids": _one_sequence([np.arange(n) for n in lengths]),
        "cu_seq_lens_q": borders,
        "cu_seq_lens_k": borders,
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
    """Whether the model, or one that it wraps, is inside `supervised_logits`."""
    return any(_is_supervised(module.__dict__.get("forward")) for module in model.modules())


def _is_supervised(forward: Any) -> bool:
    """Whether it is what `in_place_of_own` gave, or wraps it: accelerate wraps forwards for mixed precision."""
    while forward is not None:
        if hasattr(forward, "supervised"):
            return True
        forward = getattr(forward, "__wrapped__", None)
    return False
