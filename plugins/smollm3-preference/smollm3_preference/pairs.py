"""Rows with a chosen and a rejected answer: examples that hold their common prompt once, and their batches."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from smollm3_finetune.api import (
    IGNORE_INDEX,
    Conversation,
    Encoded,
    Renderer,
    branch_rows,
    branched_example,
    flatten_branches,
    flatten_rows,
    pad_rows,
)

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

Collate = Callable[[list[dict[str, Any]]], dict[str, Any]]


def pair_example(conversation: Conversation, renderer: Renderer, max_length: int) -> Mapping[str, Sequence[int]] | None:
    """The example of a pair; None, with a note for the user, if it cannot be compared.

    Both conversations are supervised after their common messages. They are not compared if one has no supervised
    tokens, if both have the same, or if the tokens before them differ.
    """
    if conversation.rejected is None or conversation.text is not None:
        renderer.note("without a rejected answer")
        return None
    shared = _shared_messages(conversation.messages, conversation.rejected)
    chosen = _supervised_after(conversation, shared)
    other = dataclasses.replace(
        conversation,
        messages=conversation.rejected,
        rejected=conversation.messages,  # both are rendered in the reasoning mode of the pair
        supervised=tuple(i for i, m in enumerate(conversation.rejected) if i >= shared and m["role"] == "assistant"),
    )
    if not chosen.supervised_messages() or not other.supervised:
        renderer.note("pair with an empty answer")
        return None
    rows = [renderer.encode(chosen, max_length), renderer.encode(other, max_length)]
    reason = _not_compared(rows, cut=max(len(row.input_ids) for row in rows) >= max_length)
    if reason is not None:
        renderer.note(reason)
        return None
    return branched_example(rows)


def _shared_messages(chosen: Sequence[Mapping[str, Any]], rejected: Sequence[Mapping[str, Any]]) -> int:
    """The number of equal messages at the start; the last of each is not counted."""
    most = max(min(len(chosen), len(rejected)) - 1, 0)
    return next((i for i in range(most) if chosen[i] != rejected[i]), most)


def _supervised_after(conversation: Conversation, shared: int) -> Conversation:
    """The conversation that supervises none of its first `shared` messages."""
    kept = tuple(i for i in conversation.supervised_messages() if i >= shared)
    return conversation if conversation.supervised == kept else dataclasses.replace(conversation, supervised=kept)


def _not_compared(rows: Sequence[Encoded], *, cut: bool) -> str | None:
    """Why two answers cannot be compared; None if they can. `cut`: the maximum length may be the reason."""
    starts = [_first_supervised(row) for row in rows]
    if any(start is None for start in starts):
        return "pair without an answer within data.max_length" if cut else "pair with an empty answer"
    first, second = (row.input_ids[:start] for row, start in zip(rows, starts, strict=True))
    if first != second:
        return "pair whose answers follow different prompts"
    if (rows[0].input_ids, rows[0].labels) == (rows[1].input_ids, rows[1].labels):
        return "pair with equal answers within data.max_length" if cut else "pair with equal answers"
    return None


def _first_supervised(row: Encoded) -> int | None:
    """The index of the first supervised token that another one precedes; None if there is none."""
    return next((i for i, label in enumerate(row.labels) if i and label != IGNORE_INDEX), None)


class PairBatches:
    """The parts of an objective that concern pairs: their examples, and their batches of all kinds."""

    def prepare(
        self, conversation: Conversation, renderer: Renderer, max_length: int
    ) -> Mapping[str, Sequence[int]] | None:
        return pair_example(conversation, renderer, max_length)

    def collator(self, tokenizer: PreTrainedTokenizerBase) -> Callable[[list[dict[str, Any]]], dict[str, Tensor]]:
        return lambda pairs: pad_rows(branch_rows(pairs), tokenizer)

    def flat_collator(self, tokenizer: PreTrainedTokenizerBase) -> Collate:
        return lambda pairs: flatten_rows(branch_rows(pairs))

    def branched_collator(self, tokenizer: PreTrainedTokenizerBase) -> Collate:
        return flatten_branches
