"""A dense copy of a quantized base: the same model with ordinary weights, each as the quantized layer reads it."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

from smollm3_finetune.errors import UnsupportedOp

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from smollm3_finetune.api import Base


def dense_copy(base: Base, dtype: torch.dtype | None = None) -> PreTrainedModel:
    """A new model in `dtype` (float32 unless given) whose linear weights are those of `base`, dequantized.

    `base` is left as it is; it must not have an adapter on it. Ties are kept. Raises UnsupportedOp where a layer
    cannot be read.
    """
    import torch

    dtype = dtype or torch.float32
    model: Any = base.model
    config = copy.deepcopy(model.config)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    state: dict[str, torch.Tensor] = {}
    inside: list[str] = []
    for name, layer in model.named_modules():
        ops = base.ops_for(layer)
        if ops is None:
            continue
        inside.append(f"{name}.")
        state[f"{name}.weight"] = ops.read_weight().to(dtype)
        if getattr(layer, "bias", None) is not None:
            state[f"{name}.bias"] = layer.bias.detach().to(dtype)
    quantized = tuple(inside)
    for name, tensor in (*model.named_parameters(remove_duplicate=False), *model.named_buffers()):
        if not (quantized and name.startswith(quantized)):
            state[name] = tensor.detach().to(dtype) if tensor.is_floating_point() else tensor.detach()
    dense: PreTrainedModel = type(model)._from_config(config, dtype=dtype).to(model.device)
    missing, unexpected = dense.load_state_dict(state, strict=False)
    wanted = {n for n, _ in dense.named_parameters()}
    if lost := sorted(wanted & set(missing)) + sorted(u for u in unexpected if u not in dict(model.named_buffers())):
        raise UnsupportedOp(f"the dense copy has no place for, or no value of: {', '.join(lost[:5])}")
    dense.tie_weights()
    dense.generation_config = copy.deepcopy(model.generation_config)
    dense.name_or_path = model.name_or_path
    for parameter in dense.parameters():
        parameter.requires_grad_(False)
    return dense.eval()
