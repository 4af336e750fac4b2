"""FSDP 2, which accelerate sets up for transformers' Trainer: on GPUs as it is, and on a CPU too.

The Trainer calls `accelerator.prepare(model, optimizer)`, which calls accelerate's `fsdp2_prepare_model`. This module
only decides what accelerate leaves open: which blocks are gathered together, in which dtype, and which parameters stay
whole.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from smollm3_finetune.api import Op, transformer_blocks
from smollm3_finetune.components.negotiation import provided
from smollm3_finetune.errors import IncompatibleError
from smollm3_finetune.train.distributed.sharding import WITHOUT_FSDP

if TYPE_CHECKING:
    from accelerate import Accelerator
    from torch import nn

    from smollm3_finetune.model.load import LoadedModel

MOST = 0.5
"""If more than this part of the parameters is trained, blocks are gathered in the dtype of the run."""


def use_fsdp(accelerator: Accelerator, loaded: LoadedModel) -> None:
    """Make accelerate shard this model with FSDP 2 when the Trainer prepares it.

    Raises IncompatibleError if a trained parameter cannot be sharded.
    """
    from accelerate.utils import DistributedType

    if accelerator.state.distributed_type == DistributedType.MULTI_CPU:
        _on_cpu(accelerator)
    if accelerator.state.distributed_type != DistributedType.FSDP:
        return  # one process
    plugin = accelerator.state.fsdp_plugin
    plugin.mixed_precision_policy = _precision(accelerator, loaded.model)
    _wrap_blocks(plugin, loaded)
    _same_dtype(accelerator, loaded.model)
    for parameter in loaded.model.parameters():
        if not parameter.is_contiguous():  # fully_shard would refuse it
            parameter.data = parameter.data.contiguous()
    whole = list(_kept_whole(loaded))
    if whole:
        plugin.ignored_modules = [*(plugin.ignored_modules or ()), _Holder(whole)]


def _on_cpu(accelerator: Accelerator) -> None:
    """Switch accelerate to FSDP in processes that gloo connects on a CPU.

    accelerate 1.15 reads ACCELERATE_USE_FSDP for types of GPUs only (`AcceleratorState.__init__`); everything after
    that, including `fsdp2_prepare_model`, works on a CPU. So this sets what that branch sets.
    """
    from accelerate import PartialState
    from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin

    accelerator.state.fsdp_plugin = FullyShardedDataParallelPlugin()
    accelerator.state.distributed_type = DistributedType.FSDP
    PartialState._shared_state["distributed_type"] = DistributedType.FSDP


def _precision(accelerator: Accelerator, model: nn.Module) -> Any:
    """The dtypes in which parameters are gathered and gradients are summed.

    An adapter is trained in float32, and the frozen weights have the dtype of the run already: nothing is cast, so the
    processes compute with the weights of one process. If most weights are trained, they are gathered in the dtype of
    the run, because autocast would otherwise keep a copy of all of them in this dtype; gradients are summed in float32.
    """
    import torch
    from torch.distributed.fsdp import MixedPrecisionPolicy

    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(accelerator.mixed_precision)
    if dtype is None or trained <= MOST * sum(p.numel() for p in model.parameters()):
        return MixedPrecisionPolicy(cast_forward_inputs=False)
    return MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32, cast_forward_inputs=False)


def _wrap_blocks(plugin: Any, loaded: LoadedModel) -> None:
    """Gather the parameters block by block, unless the launcher names other classes or another policy."""
    from torch.distributed.fsdp.wrap import size_based_auto_wrap_policy, transformer_auto_wrap_policy

    if plugin.auto_wrap_policy is size_based_auto_wrap_policy or plugin.transformer_cls_names_to_wrap:
        return
    try:
        blocks = transformer_blocks(loaded.base.model)
    except IncompatibleError:  # the whole model is gathered at once
        plugin.auto_wrap_policy = None
        return
    plugin.auto_wrap_policy = transformer_auto_wrap_policy
    plugin.transformer_cls_names_to_wrap = sorted({type(block).__name__ for block in blocks.values()})


def _same_dtype(accelerator: Accelerator, model: nn.Module) -> None:
    """Keep trained weights in float32 if the run has another dtype: FSDP 2 needs one dtype for all of them.

    accelerate does the same, except with some quantized weights.
    """
    import torch

    if accelerator.mixed_precision != "no":
        for parameter in model.parameters():
            if parameter.requires_grad and parameter.dtype != torch.float32:
                parameter.data = parameter.data.float()


def _kept_whole(loaded: LoadedModel) -> Iterator[nn.Parameter]:
    """The frozen parameters that each process keeps: of quantized layers that do not shard, and single numbers.

    Raises IncompatibleError for a trained parameter that is a single number.
    """
    shards = Op.SHARDS in provided(loaded.plan.quantizer, loaded.plan.env)[0]
    for name, module in loaded.model.named_modules():
        quantized = not shards and loaded.base.ops_for(module) is not None
        for own, parameter in module.named_parameters(recurse=quantized):
            if parameter.requires_grad and not parameter.ndim:
                assert loaded.plan.adapter is not None
                raise IncompatibleError(
                    f"{loaded.plan.adapter.component.title} trains {name}.{own}, a single number, which FSDP cannot "
                    "shard",
                    hint=WITHOUT_FSDP,
                )
            if not parameter.requires_grad and (quantized or not parameter.ndim):
                yield parameter


class _Holder:
    """What accelerate takes for a module whose parameters are not sharded."""

    def __init__(self, parameters: list[nn.Parameter]) -> None:
        self._parameters = parameters

    def parameters(self) -> list[nn.Parameter]:
        return self._parameters
