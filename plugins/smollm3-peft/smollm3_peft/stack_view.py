"""Presents quantized stacks of experts to PEFT as parameters, and applies LoRA to them without a dense weight.

PEFT adds the update of `target_parameters` to the whole stack (E, out, in), so a quantized one would become dense in
each forward. Here the two factors are handed to the stack, which multiplies by them expert by expert.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

import torch
from peft.tuners.lora.layer import ParamWrapper
from torch import nn

from smollm3_finetune.api import StackOps, stack_ops_for
from smollm3_peft.linear_view import RefuseMerge


@contextmanager
def stack_views_in(model: nn.Module) -> Iterator[None]:
    """Inside the context, each quantized stack of `model` is a parameter without values, which PEFT can target."""
    found: list[tuple[nn.Module, str, nn.Module]] = []
    for name, module in list(model.named_modules()):
        if stack_ops_for(module) is not None:
            owner, _, own = name.rpartition(".")
            found.append((model.get_submodule(owner), own, module))
    for owner, own, stack in found:
        delattr(owner, own)
        owner.register_parameter(own, _without_values(stack))
    try:
        yield
    finally:
        for owner, own, stack in found:
            delattr(owner, own)
            owner.add_module(own, stack)
    for name, module in model.named_modules():
        if isinstance(module, ParamWrapper) and (stack := _stack_of(module)) is not None:
            module._activate_lora = _Activate(module)
            module.merge = RefuseMerge(f"{name}.{module.parameter_name}")


def _without_values(stack: Any) -> nn.Parameter:
    """A frozen parameter with the shape, dtype and device of a stack, whose elements share one zero."""
    zero = torch.zeros((), dtype=stack.dtype, device=stack.device)
    return nn.Parameter(zero.expand(stack.shape), requires_grad=False)


def _stack_of(wrapper: ParamWrapper) -> StackOps | None:
    return stack_ops_for(getattr(wrapper.get_base_layer(), wrapper.parameter_name))


class _Activate:
    """Replaces `ParamWrapper._activate_lora`: the update of the active adapter is applied inside the context."""

    def __init__(self, wrapper: ParamWrapper) -> None:
        self.wrapper = (wrapper,)  # in a tuple, so that the wrapper is not its own submodule

    def __call__(self, active_adapters: Sequence[str]) -> AbstractContextManager[Any]:
        (wrapper,) = self.wrapper
        stack, inside = _stack_of(wrapper), ExitStack()
        assert stack is not None
        for name in active_adapters:
            if name in wrapper.lora_A:
                inside.enter_context(_updated(stack, *wrapper.get_delta_factors(name)))
        return inside


def _updated(stack: StackOps, left: torch.Tensor, right: torch.Tensor, scaling: float) -> AbstractContextManager[None]:
    """The stack plus scaling · left @ right, which are factors in the layout of the stack."""
    if stack.transposed:
        left, right = right.transpose(1, 2), left.transpose(1, 2)
    return stack.updated(left, right, scaling)
