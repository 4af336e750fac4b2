"""The output layer and the cross-entropy at supervised positions only, in pieces that fit a fixed amount of memory.

The forward of the innermost model is replaced, so that whatever wraps it (an adapter, the Trainer, data parallelism)
works as before and finds the loss in the output's `loss`. The output layer is called as the module that it is: an
adapter on it takes part. Where logits are not plainly that module's output, which is measured, nothing is replaced.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

from smollm3_finetune.api.data import IGNORE_INDEX
from smollm3_finetune.batching.cross_entropy import refuse_second_derivative, supervised_cross_entropy
from smollm3_finetune.batching.eager import eager
from smollm3_finetune.batching.probe import measuring
from smollm3_finetune.errors import is_resource_error

if TYPE_CHECKING:
    from torch import Tensor, nn

LOGIT_BYTES = 2**28
"""The most that the logits of one piece may take in memory."""
CPU_LOGIT_BYTES = 2**26
"""The same on a CPU, which is as quick with fewer rows at a time."""

SAME_LOSS = 1e-5
"""How far two losses of equal logits may be apart, relative: sums in float32 in another order."""

CHANGED_LOGITS = ("final_logit_softcapping", "logit_scale", "logits_scaling", "logits_scale", "lm_head_multiplier")
"""Settings by which a model changes its logits after the output layer."""

OTHER_RESULTS = ("logits_to_keep", "output_attentions", "output_hidden_states", "output_router_logits", "shift_labels")
"""Arguments that ask for more than the loss."""


@dataclass
class SupervisedOutput(CausalLMOutputWithPast):  # type: ignore[misc]
    """A loss without logits."""

    loss_sum: Tensor | None = None
    """The cross-entropy summed over supervised tokens; what an adapter adds to `loss` is not in it."""
    terms: int | None = None
    """How many they are."""


@contextmanager
def supervised_logits(model: PreTrainedModel, logit_bytes: int | None = None) -> Iterator[bool]:
    """While the context is open, `model` computes logits only where a label is, and none for its caller.

    Calls without labels are as before. Gives whether it is so: a model whose logits are more than its output layer's
    output keeps its own forward.
    """
    forward = SupervisedForward(model, logit_bytes)
    if not forward.agrees():
        yield False
        return
    had = model.__dict__.get("forward")
    model.forward = forward.in_place_of_own()
    try:
        yield True
    finally:
        if had is None:
            del model.forward
        else:
            model.forward = had


def _asked(value: Any) -> bool:
    """Whether an argument asks for anything; a tensor does."""
    return isinstance(value, torch.Tensor) or bool(value)


class SupervisedForward:
    """A causal language model's forward with labels, by its body and its output layer."""

    def __init__(self, model: PreTrainedModel, logit_bytes: int | None = None) -> None:
        self.model = model
        self.own: Callable[..., Any] = model.forward
        self.logit_bytes = logit_bytes or (CPU_LOGIT_BYTES if model.device.type == "cpu" else LOGIT_BYTES)

    def in_place_of_own(self) -> Callable[..., Any]:
        """A function with the signature of the model's own forward."""

        @functools.wraps(self.own)
        def forward(*args: Any, **kwargs: Any) -> Any:
            other = any(_asked(kwargs.get(name)) for name in OTHER_RESULTS)
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
        **kwargs: Any,
    ) -> Any:
        hidden = self.model.base_model(**kwargs)[0]  # (B, T, H)
        out = self._output(hidden, labels, num_items_in_batch)
        return out.to_tuple() if return_dict is False else out

    @eager
    def _output(self, hidden: Tensor, labels: Tensor, num_items_in_batch: Any) -> SupervisedOutput:
        """hidden (B, T, H), labels (B, T)"""
        targets = labels[:, 1:].to(hidden.device)  # (B, T - 1): position t predicts token t + 1
        where = targets != IGNORE_INDEX
        loss_sum = self._loss_sum(hidden[:, :-1][where], targets[where])
        terms = int(where.sum())
        count = num_items_in_batch if num_items_in_batch is not None else terms
        count = count.to(loss_sum.device) if isinstance(count, torch.Tensor) else torch.tensor(float(count))
        return SupervisedOutput(loss=loss_sum / count.to(loss_sum), loss_sum=loss_sum, terms=terms)

    def _loss_sum(self, hidden: Tensor, targets: Tensor) -> Tensor:
        """hidden (N, H), targets (N,)"""
        size = self._rows_at_once(hidden.dtype)
        if len(targets) <= size:
            return self._piece(hidden, targets)
        is_trained = torch.is_grad_enabled() and self._is_trained(hidden[:1].detach())
        if torch.is_grad_enabled() and hidden.requires_grad and not is_trained:
            total: Tensor = _PieceByPiece.apply(hidden, targets, size, self._piece)
            return total
        total = hidden.new_zeros((), dtype=torch.promote_types(hidden.dtype, torch.float32))
        for piece, wanted in zip(hidden.split(size), targets.split(size), strict=True):
            if is_trained:  # its logits are made again in the backward pass
                total = total + checkpoint(self._piece, piece, wanted, use_reentrant=False)
            else:
                total = total + self._piece(piece, wanted)
        return total

    def _is_trained(self, hidden: Tensor) -> bool:
        """Whether the output layer trains anything: of its own, of hooks, or of what it refers to. hidden (1, H)"""
        head = self._head()
        return any(p.requires_grad for p in head.parameters()) or bool(head(hidden[None]).requires_grad)

    def _piece(self, hidden: Tensor, targets: Tensor) -> Tensor:
        logits = self._head()(hidden[None])[0]  # (N, V)
        return supervised_cross_entropy(logits, targets)

    def _rows_at_once(self, dtype: torch.dtype) -> int:
        vocabulary = int(self.model.config.get_text_config().vocab_size)
        width = 8 if dtype == torch.float64 else 4
        return max(self.logit_bytes // (width * vocabulary), 1)

    def _head(self) -> nn.Module:
        head: nn.Module = self.model.get_output_embeddings()
        return head

    def agrees(self) -> bool:
        """Whether the model's own logits and loss are what body, output layer and cross-entropy give."""
        config = self.model.config.get_text_config()
        if any(getattr(config, name, None) not in (None, 1, 1.0) for name in CHANGED_LOGITS):
            return False
        if self._head() is None or self.model.base_model is self.model:
            return False
        if getattr(config, "output_router_logits", False):  # its loss is added, and may be small
            return False
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
    """A sum over pieces whose gradient is taken piece by piece, while the logits of that piece are there.

    So one piece of logits is in memory at a time and none is computed twice. For output layers that are not trained:
    the gradient of one that is would have to wait here, as large as the layer.
    """

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, targets: Tensor, size: int, loss_of: Callable[..., Tensor]) -> Tensor:
        gradient = torch.empty_like(hidden)
        total = hidden.new_zeros((), dtype=torch.promote_types(hidden.dtype, torch.float32))
        for start in range(0, len(targets), size):
            where = slice(start, start + size)
            with torch.enable_grad():
                piece = hidden[where].detach().requires_grad_()
                loss = loss_of(piece, targets[where])
            (gradient[where],) = torch.autograd.grad(loss, piece)
            total += loss.detach()
        ctx.save_for_backward(gradient)
        return total

    @staticmethod
    def backward(ctx: Any, *wanted: Tensor) -> tuple[Tensor, None, None, None]:
        refuse_second_derivative()
        (gradient,) = ctx.saved_tensors
        wide = torch.promote_types(gradient.dtype, wanted[0].dtype)  # a loss scale may be more than float16 holds
        return (gradient.to(wide) * wanted[0]).to(gradient.dtype), None, None, None
