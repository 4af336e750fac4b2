"""Text of an answer while it is generated."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class TextStream:
    """A streamer of transformers: passes each new piece of text to `write`.

    The pieces make up the decoded answer without white space around it, as a whole answer is printed: each token is
    decoded with all tokens before it. White space and incomplete characters are held back until the next token.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, write: Callable[[str], None]) -> None:
        self.tokenizer = tokenizer
        self.write = write
        self.ids: list[int] = []
        self.shown = ""
        self.prompt_seen = False

    def put(self, value: Any) -> None:
        """Take the prompt, which comes first and is not shown, or new tokens."""
        if not self.prompt_seen:
            self.prompt_seen = True
            return
        self.ids += value.reshape(-1).tolist()
        text = self._text()
        if text.startswith(self.shown):  # some tokenizers change the space before a token that follows
            self._show(text.rstrip("\ufffd").rstrip())

    def end(self) -> None:
        """Show what was held back."""
        text = self._text()
        if not text.startswith(self.shown):
            self.write("\n")
            self.shown = ""
        self._show(text)

    def _text(self) -> str:
        return str(self.tokenizer.decode(self.ids, skip_special_tokens=True)).strip()

    def _show(self, text: str) -> None:
        if len(text) > len(self.shown):
            self.write(text[len(self.shown) :])
            self.shown = text
