"""Load a GPTQ checkpoint into a model with `GPTQLinear` layers.

The codes are read layer by layer: memory holds them only once. The scales are never rounded to the run's dtype.
"""

from __future__ import annotations

import torch
from torch import nn

from smollm3_finetune.api import Base, BuildContext, LayerTensors, ModelError, ModelSource, load_into
from smollm3_gptq.checkpoint import Checkpoint, view
from smollm3_gptq.linear import GPTQLinear, ops_in


def load_checkpoint(source: ModelSource, checkpoint: Checkpoint, ctx: BuildContext) -> Base:
    """The frozen model on `ctx.device`; unquantized tensors are in `ctx.dtype`.

    Raises ModelError if the checkpoint's layers do not match its architecture.
    """
    layers = checkpoint.layers()

    def shape_of(tensors: LayerTensors) -> tuple[int, int]:
        if tensors.layer not in layers:
            raise ModelError(f"{source.ref!r}: the tensors of {tensors.layer!r} are not those of a GPTQ layer")
        return layers[tensors.layer].out_features, layers[tensors.layer].in_features

    def make(name: str, linear: nn.Linear, tensors: LayerTensors) -> nn.Module:
        about = layers[tensors.layer]
        parts = {part: tensor.to(ctx.device) for part, tensor in checkpoint.tensors(tensors).items()}
        if not torch.equal(parts["g_idx"].unique().long().cpu(), torch.arange(len(parts["scales"]))):
            raise ModelError(f"{source.ref!r}: the groups of the quantized layer {name} do not match its scales")
        if not bool(parts["scales"].isfinite().all()):
            raise ModelError(
                f"{source.ref!r}: the quantized layer {name} contains scales that are not finite",
                hint="copy or download it again, or quantize again with a larger --quant-opt damp_percent",
            )
        layer = GPTQLinear(about.in_features, about.out_features, about.bits)
        layer.fill(**parts, zeros_less_one=checkpoint.zeros_less_one)
        layer.bias, stored = linear.bias, tensors.get("bias")
        if stored is not None and stored.any():  # AutoGPTQ writes zeros for layers without a bias
            layer.bias = nn.Parameter(stored.to(ctx.device, ctx.torch_dtype))
        return layer

    with view(checkpoint, checkpoint.description) as directory:
        ops = ops_in(ctx.torch_dtype)
        return load_into(source.at(directory), ctx, make, name="gptq", ops=ops, shape_of=shape_of)
