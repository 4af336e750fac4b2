"""Answering a prompt with a loaded model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from smollm3_finetune.data.render import Renderer, RenderOptions

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedTokenizerBase


def answer(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Mapping[str, Any]],
    *,
    max_new_tokens: int,
    temperature: float = 0.0,
    top_p: float = 1.0,
    streamer: Any = None,
    template_kwargs: Mapping[str, Any] | None = None,
    renderer: Renderer | None = None,
) -> str:
    """The model's answer to `messages`, cut at the end of its turn. Greedy where `temperature` is 0.

    `renderer` is the run's own, where there is one; else the tokenizer's template and today's date are used.
    Leaves the model in the mode (training or evaluation) it was in.
    """
    import torch

    renderer = renderer or Renderer(tokenizer, RenderOptions(date=None))
    prompt = renderer.prompt(messages, **(template_kwargs or {}))
    ids = tokenizer(prompt, add_special_tokens=False, return_tensors="pt").input_ids
    device = next(model.parameters()).device
    ids = ids.to(device)
    sampling = {"do_sample": True, "temperature": temperature, "top_p": top_p} if temperature > 0 else {}
    unset = {} if sampling else {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            out = model.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=max_new_tokens,
                eos_token_id=renderer.end_of_turn_ids(),
                pad_token_id=tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id,
                streamer=streamer,
                **sampling,
                **unset,
            )
    finally:
        model.train(training)
    return str(tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True)).strip()
