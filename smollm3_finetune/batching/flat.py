"""The rows of a batch one behind the other, as one sequence: no padding, no attention mask, positions for each row."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate, chain
from typing import Any

import torch

from smollm3_finetune.data.render import IGNORED

Collate = Callable[[list[dict[str, Any]]], dict[str, Any]]


def flatten(examples: Sequence[Mapping[str, Sequence[int]]]) -> dict[str, Any]:
    """Rows of `input_ids` and `labels` as arguments of a causal language model, (1, T) each with T the sum of lengths.

    The first label of a row is ignored: it would be learned from the last token of the row before. The borders of the
    rows go to the attention by the names that transformers has for them; the cache is off, since with one the
    model's mask would no longer follow `position_ids`.
    """
    lengths = [len(e["input_ids"]) for e in examples]
    borders = torch.tensor([0, *accumulate(lengths)], dtype=torch.int32)  # (rows + 1,)
    return {
        "input_ids": _one_sequence(e["input_ids"] for e in examples),
        "labels": _one_sequence((IGNORED, *e["labels"][1:]) for e in examples),
        "position_ids": _one_sequence(range(n) for n in lengths),
        "cu_seq_lens_q": borders,
        "cu_seq_lens_k": borders,
        "max_length_q": max(lengths),
        "max_length_k": max(lengths),
        "use_cache": False,
    }


def _one_sequence(rows: Any) -> torch.Tensor:
    return torch.tensor([list(chain.from_iterable(rows))])  # (1, T)
