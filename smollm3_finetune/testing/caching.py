"""Checks for generation: with a key-value cache, the tokens that come one by one have the logits of all at once."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from smollm3_finetune.model.compare import apart, logits
from smollm3_finetune.testing.conformance import demand

if TYPE_CHECKING:
    from torch import nn

NEW_TOKENS, PREFIX, PADDING = 5, 5, 2
NORMALIZATION = 1e-6
"""Normalization is computed in float32 in every dtype, and its rounding depends on the shape of the input."""


def check_generation(model: nn.Module, ids: Tensor, bound: float) -> None:
    """`generate` gives the same tokens and logits with and without a cache, also for a row that is padded."""
    bound = max(bound, NORMALIZATION)
    mask = torch.ones_like(ids)
    mask[-1, :PADDING] = 0  # on the left, as prompts of different lengths are padded
    cached, right = (_generated(model, ids, mask, use_cache=use_cache) for use_cache in (True, False))
    error = apart(cached[1], right[1])
    demand(
        error <= bound,
        f"the logits of generated tokens differ by {error:.2g} with a key-value cache (limit {bound:.2g}): a forward "
        "with a cache receives only the new tokens, and the positions that it receives do not begin at 0",
    )
    demand(torch.equal(cached[0], right[0]), "generate() with a key-value cache gives other tokens than without")
    alone, _ = _generated(model, ids[:1], mask[:1], use_cache=True)
    demand(
        torch.equal(alone[0], cached[0][0]),
        "generate() gives a row other tokens in a batch than alone: rows of a batch must not influence each other",
    )


def check_one_by_one(model: nn.Module, ids: Tensor, bound: float) -> None:
    """Tokens that come one by one, at first or after a prefix, have the logits of all tokens at once."""
    bound = max(bound, NORMALIZATION)
    right = logits(model, ids)
    for prefix in (1, PREFIX):
        for stated in (False, True):
            error = apart(_one_by_one(model, ids, prefix, stated), right)
            how = f"after a prefix of {prefix} tokens" if prefix > 1 else "from the first on"
            demand(
                error <= bound,
                f"the logits differ by {error:.2g} from those of all tokens at once if tokens come one by one {how}, "
                f"with a key-value cache, {'with' if stated else 'without'} position_ids (limit {bound:.2g})",
            )


def _generated(model: Any, ids: Tensor, mask: Tensor, use_cache: bool) -> tuple[Tensor, Tensor]:
    """The tokens (B, T) that greedy decoding adds, and their logits (B, T, V)."""
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            found = model.generate(
                input_ids=ids, attention_mask=mask, use_cache=use_cache, do_sample=False, pad_token_id=0,
                max_new_tokens=NEW_TOKENS, min_new_tokens=NEW_TOKENS, return_dict_in_generate=True, output_logits=True,
            )  # fmt: skip
    finally:
        model.train(training)
    return found.sequences[:, -NEW_TOKENS:], torch.stack(found.logits, dim=1)


def _one_by_one(model: Any, ids: Tensor, prefix: int, stated: bool) -> Tensor:
    """The logits (B, T, V) of a forward on `prefix` tokens, and of one on each further token; `stated`: positions."""
    training = model.training
    model.eval()
    cache, found = None, []
    try:
        with torch.no_grad():
            for start, end in [(0, prefix), *((t, t + 1) for t in range(prefix, ids.shape[1]))]:
                more = {"position_ids": torch.arange(start, end, device=ids.device)[None]} if stated else {}
                out = model(input_ids=ids[:, start:end], past_key_values=cache, use_cache=True, **more)
                cache = out.past_key_values
                found.append(out.logits)
    finally:
        model.train(training)
    return torch.cat(found, dim=1)
