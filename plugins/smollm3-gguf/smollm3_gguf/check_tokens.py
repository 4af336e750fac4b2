"""Gate 2: the tokenizer that a file states, rebuilt, gives the ids of the source's tokenizer."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from smollm3_finetune.api import Check, Progress
from smollm3_gguf.fuzz import texts
from smollm3_gguf.rebuilt import rebuilt
from smollm3_gguf.vocabulary import CONTROL, UNUSED, USER_DEFINED, Vocabulary

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

NAME = "tokens"
BATCH = 2000
"""Texts that are tokenized at once."""


def check_tokens(
    vocabulary: Vocabulary,
    tokenizer: PreTrainedTokenizerBase,
    rows: Iterable[str],
    fuzzed: int,
    progress: Progress,
) -> Check:
    """Compare the ids of `fuzzed` random texts and of all `rows`, and the text of every token."""
    if (says := _other_tokens(vocabulary, tokenizer)) is not None:
        return Check(name=NAME, passed=False, says=says)
    own = rebuilt(vocabulary)
    special = [t for t, k in zip(vocabulary.tokens, vocabulary.types, strict=True) if k in (CONTROL, USER_DEFINED)]
    compared = [0, 0]
    with progress.task("comparing token ids", total=fuzzed) as task:
        sources: tuple[Iterator[str], ...] = (texts(fuzzed, special), iter(rows))
        for which, source in enumerate(sources):
            while batch := list(itertools.islice(source, BATCH)):
                if (says := _other_ids(own, tokenizer, batch)) is not None:
                    return Check(name=NAME, passed=False, says=says)
                compared[which] += len(batch)
                if which == 0:
                    task.advance(len(batch))
    of_rows = f" and of all {compared[1]:,} training rows" if compared[1] else ""
    return Check(
        name=NAME,
        passed=True,
        says=f"the ids of {compared[0]:,} random texts{of_rows} are equal; pre-tokenizer {vocabulary.pre}",
        figures={"random texts": compared[0], "training rows": compared[1], "pre-tokenizer": vocabulary.pre},
    )


def _other_tokens(vocabulary: Vocabulary, tokenizer: PreTrainedTokenizerBase) -> str | None:
    """The first id at which the file has another token; None if there is none."""
    held: dict[str, int] = tokenizer.get_vocab()
    for token, i in sorted(held.items(), key=lambda item: item[1]):
        found = vocabulary.tokens[i] if i < len(vocabulary.tokens) else None
        if found != token:
            return f"token {i} is {found!r} in the file, but {token!r} in the tokenizer"
    used = sum(kind != UNUSED for kind in vocabulary.types)
    if used != len(held):
        return f"the file has {used} tokens, the tokenizer {len(held)}"
    return None


def _other_ids(own: Any, tokenizer: PreTrainedTokenizerBase, batch: list[str]) -> str | None:
    """The first text with other ids; None if there is none."""
    expected = tokenizer(batch, return_attention_mask=False)["input_ids"]
    for text, wanted, encoded in zip(batch, expected, own.encode_batch_fast(batch), strict=True):
        found = encoded.ids
        if found != list(wanted):
            at = next((i for i, (a, b) in enumerate(zip(found, wanted, strict=False)) if a != b), None)
            at = min(len(found), len(wanted)) if at is None else at
            return (
                f"the text {text[:60]!r} has the ids {found[at : at + 4]} in the file from position {at} on, "
                f"but {list(wanted[at : at + 4])} in the tokenizer"
            )
    return None
