"""Answering a prompt with a loaded model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from smollm3_finetune.data.chat_template.renderer import Renderer, RenderOptions
from smollm3_finetune.errors import ConfigError
from smollm3_finetune.model_files.context_length import context_of, yarn_problem

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedTokenizerBase

    from smollm3_finetune.model.plan import ModelPlan


def room_for(plan: ModelPlan, prompt_tokens: int, max_new_tokens: int, *, fixed: bool = False) -> int:
    """How many of `max_new_tokens` fit behind a prompt; all of them where the model does not say what it takes.

    Raises ConfigError where the prompt alone does not fit; `fixed` says that the model's context cannot be changed.
    """
    takes = context_of(plan.source.config)
    if takes is None or prompt_tokens + max_new_tokens <= takes:
        return max_new_tokens
    if prompt_tokens >= takes:
        stretch = not fixed and hasattr(plan.loader.options, "context")
        longer = stretch and yarn_problem(plan.source.config, plan.ref) is None
        raise ConfigError(
            f"the prompt is {prompt_tokens} tokens long, and {plan.ref!r} takes {takes} with the answer",
            hint=f"--loader-opt context={prompt_tokens + max_new_tokens} (YaRN)" if longer else "a shorter --prompt",
        )
    return takes - prompt_tokens


def answer(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Mapping[str, Any]],
    *,
    max_new_tokens: int,
    temperature: float = 0.0,
    top_p: float = 1.0,
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
                **sampling,
                **unset,
            )
    finally:
        model.train(training)
    return str(tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True)).strip()
