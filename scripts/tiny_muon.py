"""The Muon optimizer for the matrices of the tiny model: in twelve minutes it reaches a lower loss than AdamW.

`torch.optim.Muon` computes the same, but in bfloat16, which is slow on most CPUs, and one matrix at a time.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor


def orthogonalize(matrices: Tensor) -> Tensor:
    """Move the singular values of each matrix (N, rows, columns), rows <= columns, toward 1.

    Source: Newton-Schulz iteration with the coefficients of Keller Jordan's Muon,
    https://kellerjordan.github.io/posts/muon/
    """
    x = matrices / (matrices.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(5):
        a = x @ x.mT
        x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
    return x


class Muon:
    """Momentum with orthogonalized updates; `learning_rate` applies per optimizer step and may be changed."""

    def __init__(self, parameters: Iterable[Tensor], learning_rate: float, decay: float = 0.05) -> None:
        self.learning_rate = learning_rate
        self.decay = decay
        by_shape: dict[torch.Size, list[Tensor]] = {}
        for parameter in parameters:
            by_shape.setdefault(parameter.shape, []).append(parameter)
        self.groups = list(by_shape.values())
        self.momenta = [torch.zeros_like(torch.stack(group), requires_grad=False) for group in self.groups]

    @torch.no_grad()
    def step(self) -> None:
        """Update all matrices and clear their gradients."""
        for group, momentum in zip(self.groups, self.momenta, strict=True):
            gradient = torch.stack([p.grad for p in group if p.grad is not None])  # (N, out, in)
            momentum.lerp_(gradient, 0.05)
            update = gradient.lerp(momentum, 0.95)  # Nesterov
            rows, columns = update.shape[1:]
            update = orthogonalize(update.mT).mT if rows > columns else orthogonalize(update)
            scale = self.learning_rate * max(1.0, rows / columns) ** 0.5
            for parameter, change in zip(group, update, strict=True):
                parameter.mul_(1 - self.learning_rate * self.decay).sub_(change, alpha=scale)
                parameter.grad = None
