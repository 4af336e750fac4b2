"""Tests for quantized stacks of experts, on a small mixture of experts.

The tests apply to a conformance class that sets `experts = True`.
"""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor

from smollm3_finetune.api import Base, Op, StackOps, stack_ops_for
from smollm3_finetune.model.compare import apart, input_gradient, logits, rounded
from smollm3_finetune.model.dense_copy import dense_copy
from smollm3_finetune.testing.conformance import demand, skip
from smollm3_finetune.testing.quantizer_case import UNSTATED_BITS, QuantizerCase
from smollm3_finetune.testing.small import mixture_source

RANK, SCALING, UPDATE_STD = 3, 0.5, 0.5


class ExpertTests(QuantizerCase):
    """The tests of stacked weights (E, out, in)."""

    experts: ClassVar[bool] = False
    """Whether the quantizer quantizes stacked weights of experts."""

    def mixture(self, tmp_path: Path) -> tuple[Base, dict[str, StackOps]]:
        """A fresh mixture and its quantized stacks; skips the test if `experts` is False."""
        if not self.experts:
            skip("`experts` is False: stacked weights of experts are not tested")
        base = self.load(tmp_path, mixture_source())
        named = base.model.named_modules()
        stacks = {n: stack for n, m in named if (stack := stack_ops_for(m)) is not None}
        demand(
            len(stacks) == 4,
            f"{len(stacks)} of 4 stacked weights of experts are quantized: use load_layerwise or quantize_experts",
        )
        return base, stacks

    def test_experts_are_near_the_dense_ones(self, tmp_path: Path) -> None:
        _, stacks = self.mixture(tmp_path)
        dense = dict(mixture_source().load(dtype=getattr(torch, self.dtype)).named_parameters())
        bits = UNSTATED_BITS if self.bits is None else self.bits
        for name, stack in stacks.items():
            declared = self.declared()
            demand(stack.ops == declared, f"{name} offers other operations than the descriptor declares")
            for expert in range(stack.sizes[0]):
                weight = dense[name][expert].to(self.device)
                found = stack.read_expert(expert)
                demand(
                    tuple(found.shape) == tuple(weight.shape) == stack.sizes[1:],
                    f"expert {expert} of {name} is {tuple(found.shape)}, but must be {tuple(weight.shape)}",
                )
                error = apart(found.double(), weight.double())
                bound = self.rounding_factor * apart(rounded(weight, bits, self.group_size), weight) + self.rounding
                demand(
                    error <= bound,
                    f"expert {expert} of {name} differs from the dense weight by {error:.2g} (limit {bound:.2g})",
                )

    def test_experts_compute_what_their_weights_say_through_a_run(self, tmp_path: Path) -> None:
        base, stacks = self.mixture(tmp_path)
        bound = max(self.rounding, *(stack.forward_rtol for stack in stacks.values()))
        wide = torch.float64 if self.dtype == "float64" else torch.float32
        dense = dense_copy(base, wide)
        right, (gradient, _) = logits(dense, self.tokens()), input_gradient(dense, self.tokens())
        before = {name: _read(stack) for name, stack in stacks.items()}
        for point in self.run_sequence(base):
            for name, stack in stacks.items():
                demand(torch.equal(_read(stack), before[name]), f"the weights of {name} change ({point})")
            if point == "before any forward":
                continue
            error = apart(logits(base.model, self.tokens()), right)
            demand(error <= bound, f"the logits of the mixture are off by {error:.2g} ({point}; limit {bound:.2g})")
            if Op.GRAD_INPUT in self.declared():
                found, _ = input_gradient(base.model, self.tokens())
                error = apart(found, gradient)
                demand(
                    error <= bound,
                    f"the gradient at the embeddings of the mixture is off by {error:.2g} ({point}; limit {bound:.2g})",
                )

    def test_a_low_rank_update_of_experts_is_exact(self, tmp_path: Path) -> None:
        base, stacks = self.mixture(tmp_path)
        bound = max(self.rounding, *(stack.forward_rtol for stack in stacks.values()))
        wide = torch.float64 if self.dtype == "float64" else torch.float32
        dense = dense_copy(base, wide)
        for name, stack in stacks.items():
            up, down = self._factors(stack)
            plain = logits(base.model, self.tokens())
            with stack.updated(up, down, SCALING):
                base.model.train()
                found = base.model(input_ids=self.tokens(), use_cache=False).logits
                found.square().mean().backward()
            demand(up.grad is not None and down.grad is not None, f"no gradient reaches the update of {name}")
            parameter = dense.get_parameter(name)
            untouched = parameter.data
            factors = [factor.detach().to(wide).requires_grad_() for factor in (up, down)]
            changed = untouched + SCALING * (factors[0] @ factors[1])
            parameter.data = changed.detach()
            parameter.grad = None
            right = dense.train()(input_ids=self.tokens(), use_cache=False).logits
            parameter.requires_grad_()
            dense(input_ids=self.tokens(), use_cache=False).logits.square().mean().backward()
            changed.backward(parameter.grad)
            for what, own, other in (
                ("the logits", found.detach(), right.detach()),
                ("the gradient of `up`", up.grad, factors[0].grad),
                ("the gradient of `down`", down.grad, factors[1].grad),
            ):
                error = apart(own, other)
                demand(error <= 3 * bound, f"with an update of {name}, {what} is off by {error:.2g}")
            demand(apart(found.detach(), plain) > 3 * bound, f"an update of {name} changes nothing")
            demand(torch.equal(logits(base.model, self.tokens()), plain), f"an update of {name} stays")
            parameter.requires_grad_(False)
            parameter.data = untouched

    def _factors(self, stack: StackOps) -> tuple[Tensor, Tensor]:
        """`up` (E, out, r) and `down` (E, r, in)."""
        experts, out, inputs = stack.sizes
        generator = torch.Generator().manual_seed(5)

        def factor(*shape: int) -> Tensor:
            values = UPDATE_STD * torch.randn(*shape, generator=generator, dtype=torch.float64)
            return values.to(self.device, getattr(torch, self.dtype)).requires_grad_()

        return factor(experts, out, RANK), factor(experts, RANK, inputs)


def _read(stack: StackOps) -> Tensor:
    return torch.stack([stack.read_expert(expert) for expert in range(stack.sizes[0])])
