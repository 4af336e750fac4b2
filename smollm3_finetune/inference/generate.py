"""Answering a prompt with a loaded model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from smollm3_finetune.data.chat_template.renderer import Renderer, RenderOptions
from smollm3_finetune.errors import ConfigError
from smollm3_finetune.inference.streaming import TextStream
from smollm3_finetune.model_files.context_length import context_of, yarn_problem
from smollm3_finetune.model_files.stops import as_ids, joined

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedTokenizerBase

    from smollm3_finetune.model.plan import ModelPlan


def room_for(plan: ModelPlan, prompt_tokens: int, max_new_tokens: int, *, fixed: bool = False) -> int:
    """The number of new tokens, up to `max_new_tokens`, that fit into the context after a prompt.

    Returns `max_new_tokens` if the model's context length is unknown. Raises ConfigError if the prompt alone does not
    fit. `fixed`: the context cannot be changed, so the error does not suggest it.
    """
    limit = context_of(plan.source.config)
    if limit is None or prompt_tokens + max_new_tokens <= limit:
        return max_new_tokens
    if prompt_tokens >= limit:
        adjustable = not fixed and hasattr(plan.loader.options, "context")
        extensible = adjustable and yarn_problem(plan.source.config, plan.ref) is None
        raise ConfigError(
            f"the prompt is {prompt_tokens} tokens long, but {plan.ref!r} supports {limit}, including the answer",
            hint=f"--loader-opt context={prompt_tokens + max_new_tokens} (YaRN)"
            if extensible
            else "use a shorter --prompt",
        )
    return limit - prompt_tokens


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
    stream: Callable[[str], None] | None = None,
) -> str:
    """The model's answer to `messages`, up to the end of its turn. Greedy if `temperature` is 0.

    `renderer` is the run's renderer; if None, the tokenizer's template and the current date are used. `stream` is
    called with each new piece of the answer; together they are the answer. The mode of the model (training or
    evaluation) is restored afterwards.
    """
    import torch

    renderer = renderer or Renderer(tokenizer, RenderOptions(date=None))
    device = next(model.parameters()).device
    ids = torch.tensor([renderer.prompt_ids(messages, **(template_kwargs or {}))], device=device)  # (1, T)
    sampling = {"do_sample": True, "temperature": temperature, "top_p": top_p} if temperature > 0 else {}
    unset = {} if sampling else {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
    streamer = {} if stream is None else {"streamer": TextStream(tokenizer, stream)}
    own = as_ids(getattr(getattr(model, "generation_config", None), "eos_token_id", None))
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            out = model.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=max_new_tokens,
                eos_token_id=joined(own, renderer.end_of_turn_ids()) or None,
                pad_token_id=tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id,
                **sampling,
                **unset,
                **streamer,
            )
    finally:
        model.train(training)
    return str(tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True)).strip()
