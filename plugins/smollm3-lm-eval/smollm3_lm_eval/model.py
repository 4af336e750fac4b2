"""A composed model in the form that the harness calls: `HFLM` around objects, which it neither loads nor changes."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from lm_eval.models.huggingface import HFLM

from smollm3_finetune.api import EvaluatedModel
from smollm3_lm_eval.options import HarnessOptions


class ComposedModel(HFLM):  # type: ignore[misc]
    """`HFLM` itself computes everything, so that results are those of the harness; only its set-up differs."""

    def __init__(self, subject: EvaluatedModel, options: HarnessOptions, batch_size: int) -> None:
        self.subject = subject
        thinking = subject.template_kwargs.get("enable_thinking")
        # In place of the model: for a module, HFLM would call eval() and tie_weights(), which overwrites a trained head
        # with the embeddings.
        stand_in: Any = SimpleNamespace(
            device=torch.device(subject.device), config=getattr(subject.model, "config", None)
        )
        super().__init__(
            pretrained=stand_in,
            backend="causal",
            tokenizer=subject.tokenizer,
            batch_size=batch_size,
            max_length=subject.max_length,
            add_bos_token=options.add_bos_token,
            enable_thinking=thinking if isinstance(thinking, bool) else None,
            think_end_token=options.think_end,
        )
        self._model = subject.model

    @property
    def max_gen_toks(self) -> int:
        """The harness's default, or half of a short context: it refuses an answer that leaves no room for a prompt."""
        return min(int(super().max_gen_toks), max(1, int(self.max_length) // 2))

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """The prompt as in training. An answer that the task begins is rendered by the tokenizer's own template."""
        if add_generation_prompt:
            return self.subject.prompt(chat_history)
        return str(super().apply_chat_template(chat_history, add_generation_prompt=False))
