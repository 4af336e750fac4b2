"""The output layer and the cross-entropy at supervised positions only, in pieces that fit a fixed amount of memory.

The forward of the innermost model is replaced, so wrappers (an adapter, the Trainer, data parallelism) work as before
and find the loss in the output's `loss`. The output layer is called as a module, so an adapter on it works. If a
measurement shows that the logits are not exactly that module's output, nothing is replaced.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

from smollm3_finetune.api.data import IGNORE_INDEX
from smollm3_finetune.api.log_probabilities import at_labels, requested_values, supervised
from smollm3_finetune.batching.cross_entropy import refuse_second_derivative, token_cross_entropy
from smollm3_finetune.batching.eager import eager
from smollm3_finetune.batching.probe import measuring
from smollm3_finetune.errors import is_resource_error

if TYPE_CHECKING:
    from torch import Tensor, nn

LOGIT_BYTES = 2**28
"""The largest size of the logits of one piece."""
CPU_LOGIT_BYTES = 2**26
"""The same on a CPU, where smaller pieces are as fast."""

PLANNED_PIECES = 64
"""The most pieces of a model without values, half of them the first and half the last: all take the same memory."""

SAME_LOSS = 1e-5
"""Largest relative difference of two losses of equal logits, from float32 sums in a different order."""

CHANGED_LOGITS = ("final_logit_softcapping", "logit_scale", "logits_scaling", "logits_scale", "lm_head_multiplier")
"""Settings with which a model changes its logits after the output layer."""

OTHER_RESULTS = ("logits_to_keep", "output_attentions", "output_hidden_states", "output_router_logits", "shift_labels")
"""Arguments that request more than the loss."""


@dataclass
class SupervisedOutput(CausalLMOutputWithPast):  # type: ignore[misc]
    """A loss without logits."""

    loss_sum: Tensor | None = None
    """The cross-entropy summed over supervised tokens, without terms that an adapter adds to `loss`."""
    terms: int | None = None
    """The number of supervised tokens."""
    token_logps: Tensor | None = None
    """The log-probabilities of supervised tokens, if they were requested instead of the loss: (B, T), 0 elsewhere."""
    token_values: Any = None
    """The values of supervised tokens (N, …), if they were requested instead of the loss: a tensor, or several."""


@contextmanager
def supervised_logits(model: PreTrainedModel, logit_bytes: int | None = None) -> Iterator[bool]:
    """While the context is open, `model` computes logits at supervised positions only, and does not return them.

    Calls without labels are unchanged. Yields False if the model keeps its own forward, because its logits are not
    exactly the output of its output layer; otherwise True.
    """
    forward = SupervisedForward(model, logit_bytes)
    if not forward.agrees():
        yield False
        return
    with _replaced(model, forward):
        yield True


@contextmanager
def supervised_logits_planned(model: PreTrainedModel) -> Iterator[bool]:
    """`supervised_logits` for a model without values: yields whether its logits are those of its output layer.

    That is read from its config, because there is nothing to measure.
    """
    forward = SupervisedForward(model, most_pieces=PLANNED_PIECES)
    if not forward.may_agree():
        yield False
        return
    with _replaced(model, forward):
        yield True


@contextmanager
def _replaced(model: PreTrainedModel, forward: SupervisedForward) -> Iterator[None]:
    original = model.__dict__.get("forward")
    model.forward = forward.in_place_of_own()
    try:
        yield
    finally:
        if original is None:
            del model.forward
        else:
            model.forward = original


def _is_requested(value: Any) -> bool:
    """Whether the value of one of OTHER_RESULTS requests it; a tensor always does."""
    return isinstance(value, torch.Tensor) or bool(value)


class SupervisedForward:
    """The forward of a causal language model with labels, computed from its base model and its output layer."""

    def __init__(self, model: PreTrainedModel, logit_bytes: int | None = None, most_pieces: int | None = None) -> None:
        """`most_pieces`: the others are left out, for a model without values; None: none is left out."""
        self.model = model
        self.most_pieces = most_pieces
        self.own: Callable[..., Any] = model.forward
        self.logit_bytes = logit_bytes or (CPU_LOGIT_BYTES if model.device.type == "cpu" else LOGIT_BYTES)

    def in_place_of_own(self) -> Callable[..., Any]:
        """A function with the signature of the model's own forward."""

        @functools.wraps(self.own)
        def forward(*args: Any, **kwargs: Any) -> Any:
            other = any(_is_requested(kwargs.get(name)) for name in OTHER_RESULTS)
            if (
                args
                or other
                or kwargs.get("labels") is None
                or kwargs.get("ignore_index", IGNORE_INDEX) != IGNORE_INDEX
            ):
                return self.own(*args, **kwargs)
            return self(**kwargs)

        forward.supervised = True  # type: ignore[attr-defined]
        return forward

    def __call__(
        self,
        *,
        labels: Tensor,
        num_items_in_batch: Any = None,
        return_dict: bool | None = None,
        ignore_index: int = IGNORE_INDEX,
        token_logps: bool = False,
        token_values: bool = False,
        **kwargs: Any,
    ) -> Any:
        hidden = self.model.base_model(**kwargs)[0]  # (B, T, H)
        if token_values:
            return self._token_values(hidden, labels)
        if token_logps:
            return self._token_logps(hidden, labels)
        out = self._output(hidden, labels, num_items_in_batch)
        return out.to_tuple() if return_dict is False else out

    @eager
    def _output(self, hidden: Tensor, labels: Tensor, num_items_in_batch: Any) -> SupervisedOutput:
        """hidden (B, T, H), labels (B, T)"""
        predicting, targets = supervised(hidden, labels)  # (N, H), (N,)
        loss_sum = self._token_losses(predicting, targets).sum()
        terms = len(targets)
        count = num_items_in_batch if num_items_in_batch is not None else terms
        count = count.to(loss_sum.device) if isinstance(count, torch.Tensor) else torch.tensor(float(count))
        return SupervisedOutput(loss=loss_sum / count.to(loss_sum), loss_sum=loss_sum, terms=terms)

    def _token_losses(self, hidden: Tensor, targets: Tensor) -> Tensor:
        """hidden (N, H), targets (N,); returns (N,)"""
        losses: Tensor = self._in_pieces(token_cross_entropy, hidden, targets)
        return losses

    @eager
    def _token_values(self, hidden: Tensor, labels: Tensor) -> SupervisedOutput:
        """hidden (B, T, H), labels (B, T)"""
        function, given = requested_values()
        return SupervisedOutput(token_values=self._in_pieces(function, *supervised(hidden, labels), *given))

    def _in_pieces(self, function: Callable[..., Any], hidden: Tensor, targets: Tensor, *given: Tensor) -> Any:
        """What `function` computes from logits (n, V), targets (n,) and n rows of each tensor of `given`.

        hidden (N, H), targets (N,), given (N, …); returns a tensor (N, …), or a tuple of them.
        """
        size = self._rows_at_once(hidden.dtype)

        def piece(hidden: Tensor, targets: Tensor, *given: Tensor) -> Any:
            return function(self._head()(hidden[None])[0], targets, *given)

        if len(targets) <= size:
            return piece(hidden, targets, *given)
        recomputed = False
        if torch.is_grad_enabled():
            one = None if self._has_trained_head() else piece(hidden[:1].detach(), targets[:1], *(g[:1] for g in given))
            recomputed = one is None or _requires_grad(one)
            if hidden.requires_grad and not recomputed:
                if isinstance(one, torch.Tensor) and one.ndim == 1:
                    return _PieceByPiece.apply(piece, size, self._starts(len(targets), size), hidden, targets, *given)
                recomputed = True
        pieces = []
        for rows in zip(*(values.split(size) for values in (hidden, targets, *given)), strict=True):
            # the logits are recomputed in the backward pass
            pieces.append(checkpoint(piece, *rows, use_reentrant=False) if recomputed else piece(*rows))
        if isinstance(pieces[0], tuple):
            return tuple(torch.cat(parts) for parts in zip(*pieces, strict=True))
        return torch.cat(pieces)

    def _starts(self, count: int, size: int) -> Sequence[int]:
        """Where the pieces of `count` rows begin."""
        starts = range(0, count, size)
        if self.most_pieces is None or len(starts) <= self.most_pieces:
            return starts
        half = self.most_pieces // 2
        return [*starts[:half], *starts[-half:]]

    @eager
    def _token_logps(self, hidden: Tensor, labels: Tensor) -> SupervisedOutput:
        """hidden (B, T, H), labels (B, T)"""
        return SupervisedOutput(token_logps=at_labels(-self._token_losses(*supervised(hidden, labels)), labels))

    def _has_trained_head(self) -> bool:
        return any(p.requires_grad for p in self._head().parameters())

    def _rows_at_once(self, dtype: torch.dtype) -> int:
        vocabulary = int(self.model.config.get_text_config().vocab_size)
        width = 8 if dtype == torch.float64 else 4
        return max(self.logit_bytes // (width * vocabulary), 1)

    def _head(self) -> nn.Module:
        head: nn.Module = self.model.get_output_embeddings()
        return head

    def may_agree(self) -> bool:
        """Whether the config of the model allows that `agrees`."""
        config = self.model.config.get_text_config()
        if any(getattr(config, name, None) not in (None, 1, 1.0) for name in CHANGED_LOGITS):
            return False
        if self._head() is None or self.model.base_model is self.model:
            return False
        # the router loss is added, and may be too small to measure
        return not getattr(config, "output_router_logits", False)

    def agrees(self) -> bool:
        """Whether base model, output layer and cross-entropy give the logits and loss of the model's own forward."""
        if not self.may_agree():
            return False
        config = self.model.config.get_text_config()
        device = next(self.model.parameters()).device
        ids = torch.arange(12, device=device)[None] % config.vocab_size  # (1, T)
        labels = torch.where(ids % 3 == 0, IGNORE_INDEX, ids)
        try:
            with measuring(self.model):
                own = self.own(input_ids=ids, labels=labels, use_cache=False)
                logits = self._head()(self.model.base_model(input_ids=ids, use_cache=False)[0])
                ours = self(input_ids=ids, labels=labels, use_cache=False)
        except (TypeError, ValueError, AttributeError, IndexError, KeyError, RuntimeError) as e:
            if is_resource_error(e):
                raise
            return False
        close = abs(float(own.loss) - float(ours.loss)) <= SAME_LOSS * abs(float(own.loss))
        return close and torch.equal(own.logits.to(logits.dtype), logits)


class _PieceByPiece(torch.autograd.Function):  # type: ignore[misc]
    """The losses of pieces, with the gradient of each piece computed immediately, while its logits are in memory.

    The loss of a token depends on the hidden state of its own position only, so the gradient of their sum holds the
    gradient of each. One piece of logits is in memory at a time, and none is computed twice. Only for output layers
    that are not trained: otherwise this function would have to store a gradient as large as the layer.
    """

    @staticmethod
    def forward(
        ctx: Any,
        values_of: Callable[..., Tensor],
        size: int,
        starts: Sequence[int],
        hidden: Tensor,
        targets: Tensor,
        *given: Tensor,
    ) -> Tensor:
        gradient = torch.empty_like(hidden)
        losses = hidden.new_empty(len(targets), dtype=torch.promote_types(hidden.dtype, torch.float32))
        ctx.given = len(given)
        for start in starts:
            where = slice(start, start + size)
            with torch.enable_grad():
                piece = hidden[where].detach().requires_grad_()
                own = values_of(piece, targets[where], *(values[where] for values in given))
                total = own.sum()
            (gradient[where],) = torch.autograd.grad(total, piece)
            losses[where] = own.detach()
        ctx.save_for_backward(gradient)
        return losses

    @staticmethod
    def backward(ctx: Any, *loss_gradients: Tensor) -> tuple[Tensor | None, ...]:
        refuse_second_derivative()
        (gradient,) = ctx.saved_tensors
        scale = loss_gradients[0][:, None]
        wide = torch.promote_types(gradient.dtype, scale.dtype)  # a loss scale may overflow float16
        return None, None, None, (gradient.to(wide) * scale).to(gradient.dtype), None, *[None] * ctx.given


def _requires_grad(values: Tensor | tuple[Tensor, ...]) -> bool:
    """Whether one of the values depends on a trained weight."""
    return any(v.requires_grad for v in (values if isinstance(values, tuple) else (values,)))
