"""The quantized layers of a base, and its quantized stacks of experts."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from smollm3_finetune.api import stack_ops_for

if TYPE_CHECKING:
    import torch

    from smollm3_finetune.api import Base, LinearOps, StackOps


def quantized_ops(base: Base) -> Iterator[LinearOps | StackOps]:
    """The operations of every quantized layer and of every quantized stack of experts."""
    for module in base.model.modules():
        view, stack = base.ops_for(module), stack_ops_for(module)
        if view is not None:
            yield view
        if stack is not None:
            yield stack


def forward_rtol(base: Base) -> float:
    """The largest `forward_rtol` of the base's layers; 0 if none is quantized."""
    return max((ops.forward_rtol for ops in quantized_ops(base)), default=0.0)


def dense_stack(stack: StackOps, dtype: torch.dtype) -> torch.Tensor:
    """The weights of all experts of a quantized stack, in its layout, as a new tensor."""
    import torch

    weights = torch.stack([stack.read_expert(e).to(dtype) for e in range(stack.sizes[0])])
    return weights.transpose(1, 2).contiguous() if stack.transposed else weights
