"""The tokens at which generation with a chat template stops."""

from __future__ import annotations

from typing import TYPE_CHECKING

from smollm3_finetune.data.chat_template.renderer import Renderer
from smollm3_finetune.errors import SmolLM3Error
from smollm3_finetune.model_files.stops import as_ids

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def stop_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """`Renderer.end_of_turn_ids` of a tokenizer; without the template's end if the template refuses a short talk."""
    try:
        return Renderer(tokenizer).end_of_turn_ids()
    except SmolLM3Error:
        return as_ids(tokenizer.eos_token_id)
