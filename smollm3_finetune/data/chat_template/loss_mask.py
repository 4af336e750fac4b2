"""The loss mask: which tokens of a rendered text are supervised.

A token never contains both the end of a prompt and the start of an answer, nor the end of an answer and the text behind
it: the text is cut there if the tokenizer would merge them. The parts of a cut text spell the same text together.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from typing import TYPE_CHECKING

from smollm3_finetune.api.data import IGNORE_INDEX
from smollm3_finetune.data.chat_template.added_space import without_added_space
from smollm3_finetune.errors import ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Span = tuple[int, int]
"""Characters, from the first to the one after the last."""


def tokens_and_labels(
    tokenizer: PreTrainedTokenizerBase, text: str, spans: Sequence[Span]
) -> tuple[list[int], list[int]]:
    """Token ids of `text`, and labels: the id inside the (start, end) characters of `spans`, else `IGNORE_INDEX`.

    Raises ModelError if the tokenizer gives no offsets and its tokens of the parts of the text do not spell it.
    """
    bounds = sorted({bound for span in spans for bound in span} - {0, len(text)})
    if not getattr(tokenizer, "is_fast", False):
        ids, offsets = _without_offsets(tokenizer, text, bounds)
    else:
        whole = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        ids, offsets = whole["input_ids"], whole["offset_mapping"]
        if cuts := _inside(bounds, offsets):
            ids, offsets = _cut(tokenizer, text, cuts, ids, offsets)
    labels = [IGNORE_INDEX] * len(ids)
    turn = 0
    for t, (start, end) in enumerate(offsets):
        while turn < len(spans) and spans[turn][1] <= start:
            turn += 1
        if turn < len(spans) and spans[turn][0] <= start and end <= spans[turn][1]:
            labels[t] = ids[t]
    return ids, labels


def _inside(bounds: Sequence[int], offsets: Sequence[Span]) -> list[int]:
    """The bounds that are inside a token, or may be: some tokenizers leave white space out of their offsets."""
    starts = [start for start, _ in offsets]
    found = []
    for bound in bounds:
        after = bisect_left(starts, bound)  # the first token that begins at the bound or later
        end = offsets[after - 1][1] if after else 0
        start = starts[after] if after < len(starts) else bound + 1
        if end > bound or end < start:
            found.append(bound)
    return found


def _cut(
    tokenizer: PreTrainedTokenizerBase, text: str, cuts: Sequence[int], ids: Sequence[int], offsets: Sequence[Span]
) -> tuple[list[int], list[Span]]:
    """Token ids of the text, cut at `cuts` before tokenizing, and the (start, end) characters of each token.

    `ids` and `offsets` are those of the whole text. A part that continues a word gets no space of its own, up to the
    next added token: behind it, the tokenizer begins again.
    """
    added = set(tokenizer.get_added_vocab().values())
    restarts = [start for i, (start, _) in zip(ids, offsets, strict=True) if i in added]
    parts: list[tuple[int, int, bool]] = []
    for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True):
        continues = start > 0
        restart = next((r for r in restarts if start < r < end), None) if continues else None
        parts.append((start, end if restart is None else restart, continues))
        if restart is not None:
            parts.append((restart, end, False))
    found: list[int] = []
    places: list[Span] = []
    for start, end, continues in parts:
        with without_added_space(tokenizer, active=continues):
            encoded = tokenizer(text[start:end], add_special_tokens=False, return_offsets_mapping=True)
        found += encoded["input_ids"]
        places += [(start + min(a, end - start - 1), start + b) for a, b in encoded["offset_mapping"]]
    return found, places


def _without_offsets(
    tokenizer: PreTrainedTokenizerBase, text: str, bounds: Sequence[int]
) -> tuple[list[int], list[Span]]:
    """Token ids, and for each the part between two bounds that it is in.

    A bound is between two tokens if the tokens of the text before it are the first tokens of the whole text; otherwise
    the text is cut there.
    """

    def tokens(part: str) -> list[int]:
        return list(tokenizer(part, add_special_tokens=False)["input_ids"])

    whole = tokens(text)
    ids: list[int] = []
    offsets: list[Span] = []
    begin, rest, at, exact = 0, whole, 0, True  # `rest`: tokens of the text from the last cut, at `begin`, to its end
    for start, end in zip([0, *bounds], [*bounds, len(text)], strict=True):
        before = tokens(text[begin:end]) if end < len(text) else rest
        if rest[: len(before)] == before:
            part, at = before[at:], len(before)
        else:
            part, exact = before[at:] if before[:at] == rest[:at] else tokens(text[start:end]), False
            begin, rest, at = end, tokens(text[end:]), 0
        ids += part
        offsets += [(start, end)] * len(part)
    if not exact and _spelled(tokenizer, ids) != _spelled(tokenizer, whole):
        raise ModelError(
            f"the tokenizer of {tokenizer.name_or_path!r} ({type(tokenizer).__name__}) gives no offsets of its tokens, "
            "and the parts of a text do not have the tokens of the text, so supervised tokens cannot be found",
            hint="use a model whose tokenizer is a fast one (tokenizer.json)",
        )
    return ids, offsets


def _spelled(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    return str(tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False))
