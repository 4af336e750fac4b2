"""Generating the tokens of answers: one call of `generate` of transformers, for one prompt or for several."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, cast

from smollm3_finetune.api import evaluating
from smollm3_finetune.data.chat_template.renderer import Renderer
from smollm3_finetune.inference.cached_prefix import CachedPrefix
from smollm3_finetune.inference.sampling import GREEDY, Sampling
from smollm3_finetune.inference.streaming import TextStream
from smollm3_finetune.model_files.stops import as_ids, joined

if TYPE_CHECKING:
    import torch
    from torch import nn
    from transformers import PreTrainedTokenizerBase

Finish = Literal["stop", "length", "cut"]
"""Why an answer ended: at a stop token, at the limit of new tokens, or because its user stopped it."""


@dataclass(frozen=True)
class Answer:
    """A generated answer."""

    ids: list[int]
    """The new tokens, the stop token included."""
    text: str
    """The decoded tokens, without special tokens and without white space around them."""
    finish: Finish


@dataclass
class Decoder:
    """Generates with one model, tokenizer and set of stop tokens."""

    model: nn.Module
    tokenizer: PreTrainedTokenizerBase
    stops: list[int]
    """The tokens that end an answer."""

    @classmethod
    def of(cls, model: nn.Module, renderer: Renderer) -> Decoder:
        """Stops at the stop tokens of the model, of the tokenizer and of the renderer's chat template."""
        own = as_ids(getattr(getattr(model, "generation_config", None), "eos_token_id", None))
        return cls(model, renderer.tokenizer, joined(own, renderer.end_of_turn_ids()))

    def answers(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        max_new_tokens: int,
        sampling: Sampling = GREEDY,
        count: int = 1,
        stream: Callable[[str], None] | None = None,
        stopped: Callable[[], bool] | None = None,
        prefix: CachedPrefix | None = None,
    ) -> list[list[Answer]]:
        """`count` answers to each of the `prompts`, which are rows of token ids; shorter ones are padded on the left.

        `stream` is called with each new piece of the text of a single answer. Generation ends after the token at which
        `stopped` returns True. A single prompt continues from `prefix` if it holds its first tokens; afterwards the
        prefix holds the prompt and its answer. The mode of the model (training or evaluation) is restored afterwards.
        """
        import torch

        inputs = self._inputs(prompts)
        length = inputs["input_ids"].shape[1]
        cache = prefix.take(prompts[0])[0] if prefix is not None else None
        more: dict[str, Any] = {} if cache is None else {"past_key_values": cache}
        if stream is not None:
            more["streamer"] = TextStream(self.tokenizer, stream)
        if count > 1:
            more["num_return_sequences"] = count
        if stopped is not None:
            more["stopping_criteria"] = _when(stopped)
        with evaluating(self.model), torch.no_grad():
            generate: Any = self.model.generate
            out = generate(
                **inputs,
                max_new_tokens=max_new_tokens,
                eos_token_id=self.stops or None,
                return_dict_in_generate=True,
                **sampling.arguments(),
                **more,
            )
        if prefix is not None:  # the last token has not been read
            prefix.keep(getattr(out, "past_key_values", None), out.sequences[0, :-1].tolist())
        found = [self._answer(row, max_new_tokens) for row in out.sequences[:, length:].tolist()]
        return [found[i * count : (i + 1) * count] for i in range(len(prompts))]

    def next_logits(self, prompts: Sequence[Sequence[int]]) -> torch.Tensor:
        """The logits of the first token of each answer, as generation computes them: float32, (prompts, vocabulary)."""
        import torch

        with evaluating(self.model), torch.no_grad():
            generate: Any = self.model.generate
            out = generate(
                **self._inputs(prompts),
                max_new_tokens=1,
                output_logits=True,
                return_dict_in_generate=True,
                **GREEDY.arguments(),
            )
        return cast("torch.Tensor", out.logits[0].float())

    def _inputs(self, prompts: Sequence[Sequence[int]]) -> dict[str, Any]:
        """Token ids and mask, (R, T), padded on the left."""
        import torch

        device, pad, length = next(self.model.parameters()).device, self._pad(), max(map(len, prompts))
        ids = [[pad] * (length - len(p)) + list(p) for p in prompts]
        mask = [[0] * (length - len(p)) + [1] * len(p) for p in prompts]
        return {
            "input_ids": torch.tensor(ids, device=device),
            "attention_mask": torch.tensor(mask, device=device),
            "pad_token_id": pad,
        }

    def _pad(self) -> int:
        for token in (self.tokenizer.pad_token_id, self.tokenizer.eos_token_id):
            if isinstance(token, int):
                return token
        return self.stops[-1] if self.stops else 0

    def _answer(self, row: list[int], limit: int) -> Answer:
        end = next((i + 1 for i, token in enumerate(row) if token in self.stops), None)
        ids = row[:end]
        finish: Finish = "stop" if end is not None else "length" if len(ids) >= limit else "cut"
        return Answer(ids, str(self.tokenizer.decode(ids, skip_special_tokens=True)).strip(), finish)


def _when(stopped: Callable[[], bool]) -> Any:
    """A stopping criterion of transformers that ends all rows."""
    import torch
    from transformers import StoppingCriteria, StoppingCriteriaList

    class Stopped(StoppingCriteria):  # type: ignore[misc]
        def __call__(self, input_ids: Any, scores: Any, **kwargs: Any) -> Any:
            return torch.full((input_ids.shape[0],), stopped(), device=input_ids.device, dtype=torch.bool)

    return StoppingCriteriaList([Stopped()])
