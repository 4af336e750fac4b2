"""A dense copy of a quantized base: the same model with ordinary weights, dequantized by its layers."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

from smollm3_finetune.api import stack_ops_for
from smollm3_finetune.errors import UnsupportedOp
from smollm3_finetune.model.quantized_layers import dense_stack

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from smollm3_finetune.api import Base


def dense_copy(base: Base, dtype: torch.dtype | None = None, device: str | None = None) -> PreTrainedModel:
    """A new model in `dtype` (default: float32) whose linear weights are those of `base`, dequantized.

    It is on `device`; None: where `base` is.

    `base` is not changed and must not have an adapter. Tied weights stay tied. Raises UnsupportedOp if the weight of a
    layer cannot be read.
    """
    import torch

    dtype = dtype or torch.float32
    model: Any = base.model
    where = model.device if device is None else torch.device(device)
    config = copy.deepcopy(model.config)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    state: dict[str, torch.Tensor] = {}
    prefixes: list[str] = []
    for name, layer in model.named_modules():
        if (stack := stack_ops_for(layer)) is not None:
            state[name] = dense_stack(stack, dtype)
            prefixes.append(f"{name}.")
        ops = base.ops_for(layer)
        if ops is None:
            continue
        prefixes.append(f"{name}.")
        state[f"{name}.weight"] = ops.read_weight().to(where).to(dtype)
        if getattr(layer, "bias", None) is not None:
            state[f"{name}.bias"] = layer.bias.detach().to(where).to(dtype)
    quantized = tuple(prefixes)
    for name, tensor in (*model.named_parameters(remove_duplicate=False), *model.named_buffers()):
        if not (quantized and name.startswith(quantized)):
            here = tensor.detach().to(where)  # first: not every device has every dtype
            state[name] = here.to(dtype) if here.is_floating_point() else here
    dense: PreTrainedModel = type(model)._from_config(config, dtype=dtype).to(where)
    missing, unexpected = dense.load_state_dict(state, strict=False)
    parameters = {n for n, _ in dense.named_parameters()}
    if unmatched := sorted(parameters & set(missing)) + sorted(
        u for u in unexpected if u not in dict(model.named_buffers())
    ):
        raise UnsupportedOp(f"weights of the dense copy are missing or unexpected: {', '.join(unmatched[:5])}")
    dense.tie_weights()
    dense.generation_config = copy.deepcopy(model.generation_config)
    dense.name_or_path = model.name_or_path
    for parameter in dense.parameters():
        parameter.requires_grad_(False)
    return dense.eval()
