"""Tokens as text that can be shown: supervised or not, with characters that a display would interpret as escapes."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Sequence
from typing import TYPE_CHECKING

from smollm3_finetune.data.prepared_row import TokenSequence

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def visible(text: str) -> str:
    """The text with control and direction characters, which a terminal would interpret, as escapes."""

    def shown(c: str) -> str:
        if c in "\n\t\u200c\u200d" or unicodedata.category(c) not in ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"):
            return c
        return c.encode("unicode_escape", "surrogatepass").decode("ascii")

    return "".join(map(shown, text))


def segments(tokenizer: PreTrainedTokenizerBase, sequence: TokenSequence) -> list[tuple[str, bool]]:
    """(text, supervised) for each unbroken run of tokens; joined, they are the sequence's text."""
    ends = [t + 1 for t, one in enumerate(sequence.supervised) if sequence.supervised[t + 1 : t + 2] != [one]]
    found, before, start = [], "", 0
    for end in ends:
        text = _decode(tokenizer, sequence.ids[:end])  # a run decoded alone may lose the space it begins with
        run = text[len(before) :] if text.startswith(before) else _decode(tokenizer, sequence.ids[start:end])
        found.append((visible(run), sequence.supervised[start]))
        before, start = text, end
    return found


def _decode(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    return str(tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False))


def token_text(tokenizer: PreTrainedTokenizerBase, token: int) -> str:
    """A token in quotes, line breaks as \\n; if it is only part of a character, its name in the vocabulary."""
    text, name = _decode(tokenizer, [token]), str(tokenizer.convert_ids_to_tokens(token))
    if "\ufffd" in text and "\ufffd" not in name:
        return f"{name}  (part of a character)"
    if name.startswith("▁") and not text.startswith(" "):  # SentencePiece: decoding drops a leading space
        text = f" {text}"
    return visible(json.dumps(text, ensure_ascii=False))
