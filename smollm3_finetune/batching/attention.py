"""Attention that stays inside each row of a sequence of several rows, with no mask over the whole sequence.

A model that asks transformers' attention registry for its attention is given one that cuts queries, keys and values at
the borders of the rows (`cu_seq_lens_q`, from `flat.flatten`), and calls for each piece the attention that the model
had before. What is no such sequence, generation among it, goes to that attention as it is. On a GPU with flash-attn
the model gets transformers' own attention instead, whose kernels take the borders; that part has not been run yet.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import eager_mask, sdpa_mask
from transformers.utils import is_flash_attn_2_available

from smollm3_finetune.batching.eager import eager

if TYPE_CHECKING:
    from torch import Tensor, nn

PREFIX = "smollm3_segments_"
BORDERS = ("cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k", "position_ids")
FLASH = "flash_attention_2"

Attention = Callable[..., tuple[Any, Any]]


class RowsNotApart(Exception):
    """Rows of one sequence would influence each other in this model; the text says why, as half a sentence."""


@contextmanager
def attention_within_rows(model: PreTrainedModel) -> Iterator[None]:
    """The model's attention kept inside the rows of flat batches, while the context is open.

    Raises RowsNotApart where the model does not let its attention be chosen.
    """
    _check_config(model)
    configs = {id(m.config): m.config for m in model.modules() if isinstance(m, PreTrainedModel)}
    before = [(config, config._attn_implementation) for config in configs.values()]
    try:
        _switch(model)
        yield
    finally:
        for config, name in before:
            config._attn_implementation_internal = name


def _switch(model: PreTrainedModel) -> None:
    had = model.config.get_text_config()._attn_implementation
    if str(had).startswith("flash_attention"):
        return
    if had not in ("sdpa", "eager"):
        raise RowsNotApart(f"its attention {had!r} takes no borders between rows")
    if not model._can_set_attn_implementation():
        raise RowsNotApart("its code does not take its attention from transformers' registry")
    wanted = FLASH if _flash_usable(model) else PREFIX + had
    try:
        model.set_attn_implementation(wanted)
    except (ValueError, ImportError) as e:
        raise RowsNotApart(f"it does not take the attention {wanted!r}: {e}") from e
    if model.config.get_text_config()._attn_implementation != wanted:
        raise RowsNotApart(f"it does not take the attention {wanted!r}")


def _check_config(model: PreTrainedModel) -> None:
    """Raises RowsNotApart for what a short measurement cannot see."""
    config = model.config.get_text_config()
    if getattr(config, "attention_chunk_size", None):
        raise RowsNotApart("its attention works in chunks of the whole sequence")
    rope = getattr(config, "rope_parameters", None) or {}
    kinds = {rope.get("rope_type"), *(v.get("rope_type") for v in rope.values() if isinstance(v, dict))}
    if kinds & {"dynamic", "longrope"}:
        raise RowsNotApart("its position embeddings depend on the longest row of a batch")


def _flash_usable(model: PreTrainedModel) -> bool:
    kind = model.device.type
    half = model.dtype in (torch.float16, torch.bfloat16) or (kind == "cuda" and torch.is_autocast_enabled(kind))
    return bool(kind == "cuda" and half and model._supports_flash_attn and is_flash_attn_2_available())


# ------------------------------------------------------------------------------------------- one row at a time


def _by_rows(plain: Callable[[nn.Module], Attention], *, additive: bool) -> Attention:
    """The attention that `plain` gives for a module, called once for each row."""

    @eager
    def attend(
        module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
    ) -> tuple[Tensor, Any]:
        # query (1, H, T, D), key and value (1, H_kv, T, D)
        borders = kwargs.get("cu_seq_lens_q")
        if borders is None:
            if attention_mask is not None and attention_mask.numel() == 0:
                raise RuntimeError("several rows share a sequence, and their borders did not reach the attention")
            return plain(module)(module, query, key, value, attention_mask, **kwargs)
        edges = _edges_of(borders)
        _check_call(module, edges[-1], query, key, kwargs)
        rest = {k: v for k, v in kwargs.items() if k not in BORDERS}
        window = kwargs.get("sliding_window")
        pieces = []
        for start, end in pairwise(edges):
            mask = _mask(end - start, window, query, additive=additive)
            row = (t[:, :, start:end] for t in (query, key, value))
            pieces.append(plain(module)(module, *row, mask, **rest)[0])  # (1, n, H, D)
        return torch.cat(pieces, dim=1), None  # (1, T, H, D)

    return attend


def _edges_of(borders: Tensor) -> list[int]:
    """The borders as numbers, which all layers of a pass share: reading them makes a GPU's queue run dry."""
    if _LAST.get("borders") is not borders:
        _LAST.update(borders=borders, edges=borders.tolist())
    edges: list[int] = _LAST["edges"]
    return edges


_LAST: dict[str, Any] = {}


def _check_call(module: nn.Module, total: int, query: Tensor, key: Tensor, kwargs: dict[str, Any]) -> None:
    if not total == query.shape[2] == key.shape[2] or query.shape[0] != 1:
        raise RuntimeError(
            f"the borders of the rows end at {total}, queries at {query.shape[2]}, keys at {key.shape[2]}"
        )
    causal = kwargs.get("is_causal")
    if not (getattr(module, "is_causal", True) if causal is None else causal):
        raise RuntimeError("its attention is not causal")
    if kwargs.get("position_bias") is not None:
        raise RuntimeError("its attention adds a bias for the whole sequence")


def _mask(length: int, window: int | None, like: Tensor, *, additive: bool) -> Tensor | None:
    """What one row of `length` tokens may look at, (1, 1, n, n); None where it is all that came before."""
    if not additive and (not window or length <= window):
        return None
    place = torch.arange(length, device=like.device)
    distance = place[:, None] - place[None, :]  # (n, n): query minus key
    seen = distance >= 0 if not window else (distance >= 0) & (distance < window)
    if not additive:
        return seen[None, None]
    hidden = torch.finfo(like.dtype).min
    return torch.zeros_like(seen, dtype=like.dtype).masked_fill(~seen, hidden)[None, None]


def _mask_of_nothing(plain: Callable[..., Any]) -> Callable[..., Any]:
    """No T × T mask for a sequence of several rows: an empty one, which tells the attention that it needs borders."""

    def make(*args: Any, **kwargs: Any) -> Any:
        several = (
            kwargs.get("attention_mask") is None
            and not kwargs.get("allow_is_causal_skip", True)
            and not kwargs.get("use_vmap", False)
            and kwargs.get("q_length") == kwargs.get("kv_length")
        )
        if several:
            return torch.empty((kwargs["batch_size"], 1, 0, 0), dtype=torch.bool, device=kwargs.get("device"))
        return plain(*args, **kwargs)

    return make


def _own_eager(module: nn.Module) -> Attention:
    """The attention in plain PyTorch that the model's own file defines."""
    own: Attention | None = getattr(sys.modules[type(module).__module__], "eager_attention_forward", None)
    if own is None:
        raise RuntimeError("its own attention is not a function that can be called for a row")
    return own


AttentionInterface.register(PREFIX + "sdpa", _by_rows(lambda module: sdpa_attention_forward, additive=False))
AttentionInterface.register(PREFIX + "eager", _by_rows(_own_eager, additive=True))
AttentionMaskInterface.register(PREFIX + "sdpa", _mask_of_nothing(sdpa_mask))
AttentionMaskInterface.register(PREFIX + "eager", _mask_of_nothing(eager_mask))
