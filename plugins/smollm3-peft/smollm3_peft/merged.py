"""The weights of adapted layers after a merge, differentiable: PEFT's own arithmetic, operation by operation.

PEFT's `merge` changes the weight in place and detaches it. Here the same operations are applied to a given weight in
the same order, so that values are equal bit for bit, and gradients reach A, B and the magnitude.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.lora.layer import Linear as LoraLinear
from peft.tuners.lora.variants import DoraLinearVariant
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import Tensor, nn

from smollm3_finetune.api import IncompatibleError, MergedLayer
from smollm3_peft.linear_view import LinearView


def layers(model: PeftModel, method: str) -> dict[str, MergedLayer]:
    """The adapted layers of `model` by their names in the base.

    Raises:
        IncompatibleError: if a layer is not a linear one, or its merge is another than that of LoRA and DoRA.
    """
    inner: Any = model.get_base_model()
    found: dict[str, MergedLayer] = {}
    for name, layer in inner.named_modules():
        if not isinstance(layer, BaseTunerLayer | AuxiliaryTrainingWrapper):
            continue
        arithmetic = _arithmetic(layer, model.active_adapter)
        if arithmetic is None:
            raise IncompatibleError(
                f"adapter {method!r} changes {name} in a way whose merged weight cannot be trained",
                hint=None if isinstance(layer, LoraLinear) else "--adapter-opt target_modules=all-linear",
            )
        base: Any = layer.get_base_layer()
        own: nn.Module = base.quantized_layer if isinstance(base, LinearView) else base
        found[name] = MergedLayer(
            module=layer,
            base=own,
            merged=partial(arithmetic, layer, model.active_adapter),
            update=partial(_update, layer, model.active_adapter) if arithmetic is _lora else None,
        )
    return found


def _arithmetic(layer: Any, adapter: str) -> Callable[[Any, str, Tensor], Tensor] | None:
    """How PEFT merges this layer; None if not as plain LoRA or DoRA."""
    if type(layer) is not LoraLinear or adapter not in layer.lora_A or layer.fan_in_fan_out:
        return None
    if layer.lora_bias[adapter] or not isinstance(layer.lora_dropout[adapter], nn.Identity):
        return None
    variant = layer.lora_variant.get(adapter)
    if variant is None:
        return _lora
    return _dora if type(variant) is DoraLinearVariant else None


def _lora(layer: Any, adapter: str, weight: Tensor) -> Tensor:
    delta: Tensor = layer.get_delta_weight(adapter)
    return (weight + delta).to(weight.dtype)


def _update(layer: Any, adapter: str, x: Tensor) -> Tensor:
    down, up = layer.lora_A[adapter], layer.lora_B[adapter]
    added: Tensor = up(down(x.to(down.weight.dtype))) * layer.scaling[adapter]
    return added


def _dora(layer: Any, adapter: str, weight: Tensor) -> Tensor:
    merged = weight + layer.get_delta_weight(adapter)
    norm = torch.linalg.norm(merged.detach(), dim=1).to(weight.dtype)  # DoRA takes it as a constant
    factor = (layer.lora_magnitude_vector[adapter].weight / norm).view(-1, 1)
    return (factor * merged).to(weight.dtype)
