"""A chunk of a long text, as an objective sees it: the renderer returns the tokens of the chunk only."""

from __future__ import annotations

from typing import TYPE_CHECKING

from smollm3_finetune.api import Conversation
from smollm3_finetune.data.chat_template.renderer import Encoded, Renderer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

CHUNKED = "chunked"
"""The note on rows of raw text that were split."""


class ChunkRenderer:
    """The renderer of a run for one chunk of a row. An objective that encodes something else gets that, cut."""

    def __init__(self, renderer: Renderer, row: Conversation, chunk: Encoded) -> None:
        self.renderer, self.row, self.chunk = renderer, row, chunk

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        return self.renderer.tokenizer

    def encode(self, conversation: Conversation, max_length: int) -> Encoded:
        if conversation != self.row:
            return self.renderer.encode(conversation, max_length)
        return self.renderer.recorded(self.chunk)

    def note(self, what: str) -> None:
        """Count the row, not each of its chunks."""
        if what not in self.renderer.counts:
            self.renderer.note(what)
