"""Text without a chat template: the tokens that `tokenizer(text)` gives, and one end token."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING

from smollm3_finetune.api.data import IGNORE_INDEX

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PROBE = "a"


class RawText:
    """The tokens of raw text, with the special tokens that a tokenizer adds to each text."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer

    @cached_property
    def _added(self) -> tuple[list[int], list[int]]:
        """The token ids that the tokenizer adds before and after a text."""
        whole, text = list(self.tokenizer(PROBE).input_ids), self._plain(PROBE)
        at = next((i for i in range(len(whole)) if whole[i : i + len(text)] == text), len(whole))
        return whole[:at], whole[at + len(text) :]

    def _plain(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False).input_ids)

    def opened(self, text: str) -> list[int]:
        """Token ids of a text to be continued: the begin tokens once, also if the text contains them."""
        return _joined(self._added[0], self._plain(text))

    def tokens_and_labels(self, text: str) -> tuple[list[int], list[int]]:
        """Token ids of a whole text and its labels: all tokens are supervised but the begin tokens.

        The text ends with the tokenizer's end token, once, also if the tokenizer or the text adds it.
        """
        (before, after), end = self._added, self.tokenizer.eos_token_id
        ids = _joined(self.opened(text), after)
        if end is not None and ids[-1:] != [int(end)]:
            ids.append(int(end))
        return ids, [IGNORE_INDEX] * len(before) + ids[len(before) :]


def _joined(first: list[int], second: list[int]) -> list[int]:
    """The two, with the tokens in which `first` ends and `second` begins once."""
    same = next((n for n in range(min(len(first), len(second)), 0, -1) if first[-n:] == second[:n]), 0)
    return first + second[same:]
