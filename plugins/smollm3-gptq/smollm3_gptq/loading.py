"""Load a GPTQ checkpoint into a model with `GPTQLinear` layers, using transformers.

transformers builds the model without weights, the quantizer registered here inserts empty `GPTQLinear` layers, and
transformers loads all other weights. Then the codes are read layer by layer. Thus memory holds them only once, and the
scales are never rounded to the run's dtype.
"""

from __future__ import annotations

import dataclasses
import re
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers.quantizers.auto import register_quantization_config, register_quantizer
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from smollm3_finetune.api import BuildContext, ModelError, ModelSource
from smollm3_gptq.checkpoint import PARTS, Checkpoint, view
from smollm3_gptq.linear import GPTQLinear

if TYPE_CHECKING:
    from transformers import PreTrainedModel

METHOD = "smollm3-gptq"
"""The value of `quant_method` while transformers loads; for the name gptq, transformers would use optimum."""


@register_quantization_config(METHOD)
class _Layers(QuantizationConfigMixin):  # type: ignore[misc]
    """The layers to replace: name to the fields of its `checkpoint.Layer`."""

    def __init__(self, layers: dict[str, dict[str, Any]] | None = None, **kwargs: Any) -> None:
        self.quant_method = METHOD
        self.layers = layers or {}


@register_quantizer(METHOD)
class _Replacer(HfQuantizer):  # type: ignore[misc]
    """Inserts `GPTQLinear` layers without codes into the model before transformers reads weights."""

    def _process_model_before_weight_loading(self, model: PreTrainedModel, **kwargs: Any) -> PreTrainedModel:
        modules = dict(model.named_modules())
        not_read = [rf"\.({'|'.join(PARTS)})$"]
        for name, about in self.quantization_config.layers.items():
            layer = modules.get(name)
            if layer is None:
                raise ModelError(f"the checkpoint has a quantized layer {name!r}, which the architecture lacks")
            shape, wanted = (about["out_features"], about["in_features"]), tuple(layer.weight.shape)
            if sorted(shape) != sorted(wanted):  # the weight of a Conv1D is transposed
                raise ModelError(f"the checkpoint's {name!r} has shape {shape}, but the architecture has {wanted}")
            linear = GPTQLinear(about["in_features"], about["out_features"], about["bits"])
            bias = getattr(layer, "bias", None)
            if bias is not None:
                linear.bias = bias
            elif about["bias"]:
                linear.bias = nn.Parameter(torch.empty(about["out_features"], device="meta"))
            else:
                not_read.append(rf"^{re.escape(name)}\.bias$")
            model.set_submodule(name, linear)
        ignored = model._keys_to_ignore_on_load_unexpected or ()
        model._keys_to_ignore_on_load_unexpected = {*ignored, *not_read}
        return model

    @property
    def is_trainable(self) -> bool:
        return True

    def is_serializable(self) -> bool:
        return False


def load_checkpoint(source: ModelSource, checkpoint: Checkpoint, ctx: BuildContext) -> PreTrainedModel:
    """The frozen model on `ctx.device`; unquantized tensors are in `ctx.dtype`.

    Raises ModelError if the checkpoint's layers do not match its architecture.
    """
    layers = checkpoint.layers()
    config = {"quant_method": METHOD, "layers": {n: dataclasses.asdict(layer) for n, layer in layers.items()}}
    with view(checkpoint, config) as directory:
        model = source.at(directory).load(dtype=ctx.torch_dtype, device_map={"": ctx.device})
    for name, parts in checkpoint.tensors():
        linear = model.get_submodule(name)
        if not torch.equal(parts["g_idx"].unique().long(), torch.arange(len(parts["scales"]))):
            raise ModelError(f"{source.ref!r}: the groups of the quantized layer {name} do not match its scales")
        if not bool(parts["scales"].isfinite().all()):
            raise ModelError(
                f"{source.ref!r}: the quantized layer {name} contains scales that are not finite",
                hint="copy or download it again, or quantize again with a larger --quant-opt damp_percent",
            )
        on_device = {part: tensor.to(ctx.device) for part, tensor in parts.items()}
        linear.fill(**on_device, zeros_less_one=checkpoint.zeros_less_one)
    model.config.quantization_config.layers = {}
    model.requires_grad_(False)
    return model
