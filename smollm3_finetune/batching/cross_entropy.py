"""The cross-entropy of logits that are all supervised, whose gradient reuses the memory of the probabilities.

torch's own cross-entropy allocates three tensors as large as the logits: the log-probabilities, which it keeps; zeros
for their gradient; and the gradient of the logits. This one allocates one, and a second one if the loss is scaled.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from torch import Tensor


def token_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """The cross-entropy of each token (N,), in float32 or wider. logits (N, V); targets (N,), none ignored.

    The result is differentiable once: backward with `create_graph=True` raises RuntimeError.
    """
    if torch.is_grad_enabled() and logits.requires_grad:
        losses: Tensor = _CrossEntropy.apply(logits, targets)
        return losses
    return _at_targets(_log_probabilities(logits), targets)


def supervised_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """`token_cross_entropy`, summed over all tokens."""
    return token_cross_entropy(logits, targets).sum()


def _log_probabilities(logits: Tensor) -> Tensor:
    return torch.log_softmax(logits, -1, dtype=torch.promote_types(logits.dtype, torch.float32))


def _at_targets(log_probabilities: Tensor, targets: Tensor) -> Tensor:
    return -log_probabilities.gather(1, targets[:, None])[:, 0]


def refuse_second_derivative() -> None:
    """Raises RuntimeError in a backward pass with `create_graph=True`.

    The gradient was computed in the forward pass, so a second derivative would silently lack a part.
    """
    if torch.is_grad_enabled():  # in a backward pass: only with create_graph=True
        raise RuntimeError("the loss at supervised positions has no second derivative; use train.logits=all")


class _CrossEntropy(torch.autograd.Function):  # type: ignore[misc]
    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor) -> Tensor:
        log_probabilities = _log_probabilities(logits)
        losses = _at_targets(log_probabilities, targets)
        gradient, at = log_probabilities.exp_(), targets[:, None]  # probabilities, minus one at the target
        gradient.scatter_(1, at, gradient.gather(1, at) - 1)
        ctx.dtype = logits.dtype
        ctx.save_for_backward(gradient)
        return losses

    @staticmethod
    def backward(ctx: Any, *loss_gradients: Tensor) -> tuple[Tensor, None]:
        refuse_second_derivative()
        (scale,) = loss_gradients
        (gradient,) = ctx.saved_tensors
        if scale.device.type != "cpu" or bool((scale != 1).any()):  # reading it elsewhere would synchronize
            gradient = gradient * scale[:, None]
        return gradient.to(ctx.dtype), None
