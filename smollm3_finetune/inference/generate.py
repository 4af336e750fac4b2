"""Answering a prompt with a loaded model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from smollm3_finetune.data.chat_template.renderer import Renderer, RenderOptions
from smollm3_finetune.errors import ConfigError
from smollm3_finetune.inference.decoding import Decoder
from smollm3_finetune.inference.sampling import GREEDY, Sampling
from smollm3_finetune.model_files.context_length import context_of, yarn_problem

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
    sampling: Sampling = GREEDY,
    template_kwargs: Mapping[str, Any] | None = None,
    renderer: Renderer | None = None,
    stream: Callable[[str], None] | None = None,
) -> str:
    """The model's answer to `messages`, up to the end of its turn. Greedy by default.

    `renderer` is the run's renderer; if None, the tokenizer's template and the current date are used. `stream` is
    called with each new piece of the answer; together they are the answer. The mode of the model (training or
    evaluation) is restored afterwards.
    """
    (only,) = answers(
        model, tokenizer, messages, count=1, max_new_tokens=max_new_tokens, sampling=sampling,
        template_kwargs=template_kwargs, renderer=renderer, stream=stream,
    )  # fmt: skip
    return only


def answers(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Mapping[str, Any]],
    *,
    count: int,
    max_new_tokens: int,
    sampling: Sampling,
    template_kwargs: Mapping[str, Any] | None = None,
    renderer: Renderer | None = None,
    stream: Callable[[str], None] | None = None,
) -> list[str]:
    """`count` answers of the model to the same `messages`; see `answer`. Only a single answer can be streamed."""
    renderer = renderer or Renderer(tokenizer, RenderOptions(date=None))
    prompt = renderer.prompt_ids(messages, **(template_kwargs or {}))
    (found,) = Decoder.of(model, renderer).answers(
        [prompt], max_new_tokens=max_new_tokens, sampling=sampling, count=count, stream=stream
    )
    return [one.text for one in found]
