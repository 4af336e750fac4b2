"""Text that looks like a control token, but is several tokens: it was not added to the tokenizer.

Only `<|name|>` counts, the shape of most control tokens. Tags such as `<tool>` are not found: rows of HTML or XML are
full of them.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from smollm3_finetune.data.counts import counted
from smollm3_finetune.model.new_tokens import KEY, is_one_token

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SHAPE = re.compile(r"<\|[A-Za-z0-9_][A-Za-z0-9_.:/-]{0,63}\|>")
SEVERAL = "several tokens: "
"""How the note on a row begins; the text follows."""
DISTINCT = 20
"""The number of different texts that are counted."""


class Undeclared:
    """Finds the texts of one tokenizer."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer
        self.one_token: dict[str, bool] = {}

    def notes(self, text: str) -> list[str]:
        """A note for each different text that looks like a control token and is several tokens."""
        if "<|" not in text:
            return []
        return [f"{SEVERAL}{found}" for found in dict.fromkeys(SHAPE.findall(text)) if self._is_several(found)]

    def _is_several(self, text: str) -> bool:
        if text not in self.one_token:
            if sum(not one for one in self.one_token.values()) >= DISTINCT:
                return False
            self.one_token[text] = is_one_token(self.tokenizer, text)
        return not self.one_token[text]


def undeclared_line(notes: Mapping[str, int], declared: Sequence[str]) -> str | None:
    """How many rows have such texts, and what makes them tokens besides the `declared` ones; None if no row has one."""
    rows = {note.removeprefix(SEVERAL): times for note, times in notes.items() if note.startswith(SEVERAL)}
    if not rows:
        return None
    ordered = sorted(rows, key=lambda text: (-rows[text], text))
    found = ", ".join(f"{text!r} ({counted(rows[text], 'row')})" for text in ordered)
    setting = shlex.quote(f"{KEY}=[{', '.join(map(_quoted, (*declared, *ordered)))}]")
    what = "is several tokens; to make it one" if len(ordered) == 1 else "are several tokens each; to make each one"
    return f"{found} {what}: --set {setting}"


def _quoted(text: str) -> str:
    """A text in a YAML list."""
    plain = re.fullmatch(r"[\w<][\w</|>]*", text) and not text.isdigit()
    return text if plain else json.dumps(text, ensure_ascii=False)
