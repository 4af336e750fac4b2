"""Attention inside each row of a sequence that holds several rows, without a mask over the whole sequence.

A model that uses transformers' attention registry gets a function that splits queries, keys and values at the row
boundaries (`cu_seq_lens_q`, from `api.batches.flatten`) and calls the model's original attention once per row. Rows
can share a prefix (`api.batches.flatten_branches`). Other calls, such as those of generation, go to the original
attention unchanged. On a GPU with flash-attn, the model gets transformers' flash attention instead, whose kernels take
row boundaries but no shared prefixes; that path has not been run yet.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import eager_mask, sdpa_mask
from transformers.utils import is_flash_attn_2_available

from smollm3_finetune.api.batches import SEGMENT_PARENTS
from smollm3_finetune.batching.eager import eager
from smollm3_finetune.batching.segments import Span, calls

if TYPE_CHECKING:
    from torch import Tensor, nn

PREFIX = "smollm3_segments_"
SEQUENCE_ARGUMENTS = (
    "cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k", "position_ids", SEGMENT_PARENTS,
)  # fmt: skip
"""Arguments that describe the whole sequence; the attention of one row does not get them."""
FLASH = "flash_attention_2"

Attention = Callable[..., tuple[Any, Any]]


class RowsNotApart(Exception):
    """Rows in one sequence would influence each other in this model; the message is a clause that gives the reason."""


@contextmanager
def attention_within_rows(model: PreTrainedModel, *, branches: bool = False) -> Iterator[None]:
    """Keep the model's attention inside the rows of flat batches while the context is open.

    `branches`: batches may have rows that share a prefix, which flash attention does not support.
    Raises RowsNotApart if the model's attention cannot be replaced.
    """
    _check_config(model)
    configs = {id(m.config): m.config for m in model.modules() if isinstance(m, PreTrainedModel)}
    before = [(config, config._attn_implementation) for config in configs.values()]
    try:
        _switch(model, branches)
        yield
    finally:
        for config, name in before:
            config._attn_implementation_internal = name


def _switch(model: PreTrainedModel, branches: bool) -> None:
    had = model.config.get_text_config()._attn_implementation
    if str(had).startswith("flash_attention"):
        return
    if had not in ("sdpa", "eager"):
        raise RowsNotApart(f"the model's attention {had!r} does not accept row boundaries")
    if not model._can_set_attn_implementation():
        raise RowsNotApart("the model's code does not use transformers' attention registry")
    wanted = FLASH if _flash_usable(model) and not branches else PREFIX + had
    try:
        model.set_attn_implementation(wanted)
    except (ValueError, ImportError) as e:
        raise RowsNotApart(f"the model does not accept the attention implementation {wanted!r}: {e}") from e
    if model.config.get_text_config()._attn_implementation != wanted:
        raise RowsNotApart(f"the model does not accept the attention implementation {wanted!r}")


def _check_config(model: PreTrainedModel) -> None:
    """Raises RowsNotApart for settings whose effect a short measurement cannot detect."""
    config = model.config.get_text_config()
    if getattr(config, "attention_chunk_size", None):
        raise RowsNotApart("the model's attention works on chunks of the whole sequence")
    rope = getattr(config, "rope_parameters", None) or {}
    kinds = {rope.get("rope_type"), *(v.get("rope_type") for v in rope.values() if isinstance(v, dict))}
    if kinds & {"dynamic", "longrope"}:
        raise RowsNotApart("the model's position embeddings depend on the longest row of a batch")


def _flash_usable(model: PreTrainedModel) -> bool:
    kind = model.device.type
    half = model.dtype in (torch.float16, torch.bfloat16) or (kind == "cuda" and torch.is_autocast_enabled(kind))
    return bool(kind == "cuda" and half and model._supports_flash_attn and is_flash_attn_2_available())


# ------------------------------------------------------------------------------------------- one call per row


def _row_by_row(original: Callable[[nn.Module], Attention], *, additive: bool) -> Attention:
    """An attention function that calls `original(module)` once for each row.

    `additive`: masks are added to the scores; otherwise they are boolean.
    """

    @eager
    def attend(
        module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
    ) -> tuple[Tensor, Any]:
        # query (1, H, T, D), key and value (1, H_kv, T, D)
        boundaries = kwargs.get("cu_seq_lens_q")
        if boundaries is None:
            if attention_mask is not None and attention_mask.numel() == 0:
                raise RuntimeError("the row boundaries of the sequence did not reach the attention function")
            return original(module)(module, query, key, value, attention_mask, **kwargs)
        spans = _spans(boundaries, kwargs.get(SEGMENT_PARENTS))
        _check_call(module, spans[-1].end, query, key, kwargs)
        rest = {k: v for k, v in kwargs.items() if k not in SEQUENCE_ARGUMENTS}
        window = kwargs.get("sliding_window")
        pieces = []
        for span in spans:
            mask = _mask(span.queries, span.keys, window, query, additive=additive)
            row = (query[:, :, span.start : span.end], span.of(key), span.of(value))
            pieces.append(original(module)(module, *row, mask, **rest)[0])  # (1, n, H, D)
        return torch.cat(pieces, dim=1), None  # (1, T, H, D)

    return attend


def _spans(boundaries: Tensor, parents: Tensor | None) -> Sequence[Span]:
    """The calls of one pass, planned once for all its layers: reading the boundaries waits for the GPU."""
    if _LAST.get("boundaries") is not boundaries or _LAST.get("parents") is not parents:
        spans = calls(boundaries.tolist(), None if parents is None else parents.tolist())
        _LAST.update(boundaries=boundaries, parents=parents, spans=spans)
    found: Sequence[Span] = _LAST["spans"]
    return found


_LAST: dict[str, Any] = {}


def plan_rows(boundaries: Tensor, edges: Sequence[int]) -> None:
    """Make the rows between `edges` those of a batch with these `boundaries`, which have no values."""
    _LAST.update(boundaries=boundaries, parents=None, spans=calls(edges, None))


def _check_call(module: nn.Module, total: int, query: Tensor, key: Tensor, kwargs: dict[str, Any]) -> None:
    if not total == query.shape[2] == key.shape[2] or query.shape[0] != 1:
        raise RuntimeError(
            f"the row boundaries end at {total}, the queries at {query.shape[2]}, the keys at {key.shape[2]}"
        )
    causal = kwargs.get("is_causal")
    if not (getattr(module, "is_causal", True) if causal is None else causal):
        raise RuntimeError("the model's attention is not causal")
    if kwargs.get("position_bias") is not None:
        raise RuntimeError("the model's attention adds a position bias for the whole sequence")


def _mask(queries: int, keys: int, window: int | None, like: Tensor, *, additive: bool) -> Tensor | None:
    """The mask of the last q of k tokens, (1, 1, q, k); None if q = k and each attends to all tokens before it."""
    if not additive and queries == keys and (not window or keys <= window):
        return None
    position = torch.arange(keys, device=like.device)
    distance = position[keys - queries :, None] - position[None, :]  # (q, k): query minus key
    seen = distance >= 0 if not window else (distance >= 0) & (distance < window)
    if not additive:
        return seen[None, None]
    hidden = torch.finfo(like.dtype).min
    return torch.zeros_like(seen, dtype=like.dtype).masked_fill(~seen, hidden)[None, None]


def _without_full_mask(original: Callable[..., Any]) -> Callable[..., Any]:
    """A mask function that returns an empty mask, not (T, T), for a sequence of several rows.

    The empty mask tells the attention function that it needs row boundaries.
    """

    def make(*args: Any, **kwargs: Any) -> Any:
        several = (
            kwargs.get("attention_mask") is None
            and not kwargs.get("allow_is_causal_skip", True)
            and not kwargs.get("use_vmap", False)
            and kwargs.get("q_length") == kwargs.get("kv_length")
        )
        if several:
            return torch.empty((kwargs["batch_size"], 1, 0, 0), dtype=torch.bool, device=kwargs.get("device"))
        return original(*args, **kwargs)

    return make


def _own_eager(module: nn.Module) -> Attention:
    """The eager attention function that the model's own module defines."""
    own: Attention | None = getattr(sys.modules[type(module).__module__], "eager_attention_forward", None)
    if own is None:
        raise RuntimeError("the model's module has no eager_attention_forward() to call for each row")
    return own


AttentionInterface.register(PREFIX + "sdpa", _row_by_row(lambda module: sdpa_attention_forward, additive=False))
AttentionInterface.register(PREFIX + "eager", _row_by_row(_own_eager, additive=True))
AttentionMaskInterface.register(PREFIX + "sdpa", _without_full_mask(sdpa_mask))
AttentionMaskInterface.register(PREFIX + "eager", _without_full_mask(eager_mask))
