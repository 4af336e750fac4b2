"""Batches of rows: padded, or flat, which is one sequence without padding and without an attention mask."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from smollm3_finetune.api.data import BRANCHES, IGNORE_INDEX, Encoded

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedTokenizerBase

Collate = Callable[[list[dict[str, Any]]], dict[str, Any]]
SEGMENT_PARENTS = "segment_parents"
"""The name in a flat batch, and of an argument of the attention, of the segment that each segment continues."""


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


def flatten_branches(examples: Sequence[Mapping[str, Sequence[int]]]) -> dict[str, Any]:
    """See `smollm3_finetune.api.flatten_branches`."""
    segments: list[dict[str, Sequence[int]]] = []
    parents: list[int] = []
    starts: list[int] = []
    for example in examples:
        prefix, *branches = _lengths(example)
        root = len(segments)
        at = 0
        for which, length in enumerate((prefix, *branches)):
            ids, labels = (example[name][at : at + length] for name in ("input_ids", "labels"))
            segments.append({"input_ids": ids, "labels": labels if which else [IGNORE_INDEX] * length})
            parents.append(root if which else -1)
            starts.append(prefix if which else 0)
            at += length
    batch = flatten(segments)
    positions = [np.arange(start, start + len(s["input_ids"])) for start, s in zip(starts, segments, strict=True)]
    batch["position_ids"] = _one_sequence(positions)
    batch[SEGMENT_PARENTS] = torch.tensor(parents, dtype=torch.int32)  # (segments,)
    return batch


def branched_example(rows: Sequence[Encoded]) -> dict[str, list[int]]:
    """See `smollm3_finetune.api.branched_example`."""
    shared = min(_first_supervised(row.labels) for row in rows)
    first = rows[0].input_ids
    for row in rows[1:]:
        both = zip(first[:shared], row.input_ids[:shared], strict=False)
        shared = next((i for i, (a, b) in enumerate(both) if a != b), min(shared, len(row.input_ids)))
    prefix = max(shared - 1, 0)  # each branch begins with the last shared token, which predicts its first own one
    ids, labels = list(first[:prefix]), [IGNORE_INDEX] * prefix
    for row in rows:
        ids += row.input_ids[prefix:]
        labels += [IGNORE_INDEX, *row.labels[prefix + 1 :]]
    return {"input_ids": ids, "labels": labels, BRANCHES: [prefix, *(len(row.input_ids) - prefix for row in rows)]}


def branch_rows(examples: Sequence[Mapping[str, Sequence[int]]]) -> list[dict[str, list[int]]]:
    """See `smollm3_finetune.api.branch_rows`."""
    rows = []
    for example in examples:
        prefix, *branches = _lengths(example)
        ids, labels, at = example["input_ids"], example["labels"], prefix
        for length in branches:
            own = slice(at, at + length)
            rows.append({"input_ids": [*ids[:prefix], *ids[own]], "labels": [*[IGNORE_INDEX] * prefix, *labels[own]]})
            at += length
    return rows


def _lengths(example: Mapping[str, Sequence[int]]) -> Sequence[int]:
    """The lengths of the prefix and of each branch. Raises ValueError if they are not those of the example."""
    lengths = example[BRANCHES]
    if len(lengths) < 2 or min(lengths[1:]) < 1 or lengths[0] < 0 or sum(lengths) != len(example["input_ids"]):
        raise ValueError(f"an example has {len(example['input_ids'])} input_ids but its branches are {list(lengths)}")
    return lengths


def _first_supervised(labels: Sequence[int]) -> int:
    """The index of the first supervised token that another one precedes; the number of tokens if there is none."""
    return next((i for i, label in enumerate(labels) if i and label != IGNORE_INDEX), len(labels))


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
