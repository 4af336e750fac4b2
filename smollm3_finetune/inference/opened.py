"""A model that is ready to answer, as the commands of plugins get it (`OpenedModel`)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from smollm3_finetune.api import Base, Reply
from smollm3_finetune.data.chat_template.renderer import Renderer
from smollm3_finetune.errors import ConfigError, did_you_mean
from smollm3_finetune.inference.decoding import Decoder
from smollm3_finetune.inference.generate import room_for
from smollm3_finetune.inference.sampling import Sampling
from smollm3_finetune.model.arguments import whole_number

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedTokenizerBase

    from smollm3_finetune.model.plan import ModelPlan

LIMITS: Mapping[str, tuple[float, float]] = {
    "temperature": (0, 100), "top_p": (0, 1), "top_k": (0, 10**9), "min_p": (0, 1), "repetition_penalty": (0, 100),
}  # fmt: skip
POSITIVE = ("top_p", "repetition_penalty")
"""Those that are not 0."""


@dataclass
class ReadyModel:
    """An `OpenedModel`."""

    model: nn.Module
    tokenizer: PreTrainedTokenizerBase
    base: Base
    plan: ModelPlan
    renderer: Renderer
    mode: Mapping[str, bool]
    """Arguments of the chat template."""
    is_run: bool

    def __post_init__(self) -> None:
        self.model.eval()

    def answer(self, messages: Sequence[Mapping[str, Any]], max_new_tokens: int = 256, **sampling: Any) -> str:
        return self.reply(messages, max_new_tokens, **sampling).text

    def reply(
        self,
        messages: Sequence[Mapping[str, Any]],
        max_new_tokens: int = 256,
        *,
        stream: Callable[[str], None] | None = None,
        **sampling: Any,
    ) -> Reply:
        import transformers

        limit = whole_number("max_new_tokens", max_new_tokens, 1)
        seed = sampling.pop("seed", None)
        chosen = checked_sampling(sampling)
        prompt = self.renderer.prompt_ids(messages, **self.mode)
        self.renderer.check_ids(prompt, "the prompt")
        room = room_for(self.plan, len(prompt), limit, fixed=self.is_run)
        if seed is not None:
            transformers.set_seed(whole_number("seed", seed, 0, 2**32 - 1))
        decoder = Decoder.of(self.model, self.renderer)
        ((found,),) = decoder.answers([prompt], max_new_tokens=room, sampling=chosen, stream=stream)
        ended: Literal["stop", "length"] = "length" if found.finish == "length" else "stop"
        return Reply(text=found.text, finish=ended, prompt_tokens=len(prompt), tokens=len(found.ids))


def checked_sampling(values: Mapping[str, Any]) -> Sampling:
    """The sampling of a reply; None stands for a value that is not set. Raises ConfigError for a wrong one."""
    for name, value in values.items():
        if name not in LIMITS:
            near = did_you_mean(name, LIMITS)
            hint = f"did you mean {near!r}?" if near else f"one of: {', '.join(LIMITS)}, seed"
            raise ConfigError(f"there is no sampling parameter {name!r}", hint=hint)
        low, high = LIMITS[name]
        if value is None:
            continue
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not number or not low <= value <= high or (name in POSITIVE and value == 0):
            raise ConfigError(f"{name}: expected a number from {low} to {high}, got {value!r}")
    given = {name: value for name, value in values.items() if value is not None}
    if "top_k" in given:
        given["top_k"] = whole_number("top_k", given["top_k"], 0)
    return Sampling(**given)
