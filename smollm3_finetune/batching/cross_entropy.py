"""The cross-entropy of logits that all count, and its gradient in the memory that the probabilities took.

torch's own makes three tensors as large as the logits: the log-probabilities, which it keeps, zeros for their gradient,
and the gradient of the logits. This makes one, and another where the loss is multiplied with anything.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from torch import Tensor


def supervised_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Summed over all rows, in float32 or wider. logits (N, V); targets (N,), none of them to be ignored.

    Its gradient has no gradient: RuntimeError for `create_graph=True`.
    """
    if torch.is_grad_enabled() and logits.requires_grad:
        loss: Tensor = _CrossEntropy.apply(logits, targets)
        return loss
    return _summed(_log_probabilities(logits), targets)


def _log_probabilities(logits: Tensor) -> Tensor:
    return torch.log_softmax(logits, -1, dtype=torch.promote_types(logits.dtype, torch.float32))


def _summed(log_probabilities: Tensor, targets: Tensor) -> Tensor:
    return -log_probabilities.gather(1, targets[:, None]).sum()


def refuse_second_derivative() -> None:
    """For the backward pass of a gradient that was made before: one through it would silently leave out a part."""
    if torch.is_grad_enabled():  # which it is, in a backward pass, for create_graph=True alone
        raise RuntimeError("the loss at supervised positions has no second derivative: train.logits=all has one")


class _CrossEntropy(torch.autograd.Function):  # type: ignore[misc]
    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor) -> Tensor:
        found = _log_probabilities(logits)
        loss = _summed(found, targets)
        gradient, at = found.exp_(), targets[:, None]  # probabilities, less one at the target
        gradient.scatter_(1, at, gradient.gather(1, at) - 1)
        ctx.dtype = logits.dtype
        ctx.save_for_backward(gradient)
        return loss

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor, None]:
        refuse_second_derivative()
        (wanted,) = outer
        (gradient,) = ctx.saved_tensors
        if wanted.device.type != "cpu" or wanted.item() != 1:  # to look at it would make another device wait
            gradient = gradient * wanted
        return gradient.to(ctx.dtype), None
