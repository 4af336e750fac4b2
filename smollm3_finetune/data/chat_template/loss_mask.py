"""The loss mask: which tokens of a rendered text are supervised."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from typing import TYPE_CHECKING

from smollm3_finetune.api.data import IGNORE_INDEX

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def tokens_and_labels(
    tokenizer: PreTrainedTokenizerBase, text: str, spans: Sequence[tuple[int, int]]
) -> tuple[list[int], list[int]]:
    """Token ids of `text`, and labels: the id inside the (start, end) characters of `spans`, else `IGNORE_INDEX`.

    A token never contains both the end of a prompt and the start of an answer: the text is split there if the tokenizer
    would merge them.
    """
    ids, offsets = _pieces(tokenizer, text, [])
    starts = [start for start, _ in offsets]
    containing = [(bound, bisect_right(starts, bound) - 1) for bound, _ in spans]
    inside = [bound for bound, t in containing if t >= 0 and offsets[t][0] < bound < offsets[t][1]]
    if inside:  # an answer that starts with a line break, which would be merged with the header's line break
        ids, offsets = _pieces(tokenizer, text, inside)
    labels = [IGNORE_INDEX] * len(ids)
    turn = 0
    for t, (start, end) in enumerate(offsets):
        while turn < len(spans) and spans[turn][1] <= start:
            turn += 1
        if turn < len(spans) and spans[turn][0] <= start and end <= spans[turn][1]:
            labels[t] = ids[t]
    return ids, labels


def _pieces(
    tokenizer: PreTrainedTokenizerBase, text: str, cuts: Sequence[int]
) -> tuple[list[int], list[tuple[int, int]]]:
    """Token ids of the text, split at `cuts` before tokenizing, and the (start, end) characters of each token."""
    ids: list[int] = []
    offsets: list[tuple[int, int]] = []
    for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True):
        encoded = tokenizer(text[start:end], add_special_tokens=False, return_offsets_mapping=True)
        ids += encoded["input_ids"]
        offsets += [(start + a, start + b) for a, b in encoded["offset_mapping"]]
    return ids, offsets
