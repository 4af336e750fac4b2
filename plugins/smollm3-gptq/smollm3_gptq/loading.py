"""Loading a GPTQ checkpoint into a model of `GPTQLinear` layers, through transformers' own loading.

transformers makes the model without weights, a quantizer registered here puts empty `GPTQLinear` layers in, and
transformers reads all other weights. The codes are then read layer by layer, so that they exist once in memory and
their scales are never rounded to the run's dtype.
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
"""What `quant_method` says while transformers loads; it would hand the name gptq to optimum."""


@register_quantization_config(METHOD)
class _Layers(QuantizationConfigMixin):  # type: ignore[misc]
    """The layers to replace: name to the fields of a `checkpoint.Layer`."""

    def __init__(self, layers: dict[str, dict[str, Any]] | None = None, **kwargs: Any) -> None:
        self.quant_method = METHOD
        self.layers = layers or {}


@register_quantizer(METHOD)
class _Replacer(HfQuantizer):  # type: ignore[misc]
    """Puts `GPTQLinear` layers without codes into the model, before transformers reads weights."""

    def _process_model_before_weight_loading(self, model: PreTrainedModel, **kwargs: Any) -> PreTrainedModel:
        modules = dict(model.named_modules())
        not_read = [rf"\.({'|'.join(PARTS)})$"]
        for name, about in self.quantization_config.layers.items():
            layer = modules.get(name)
            if layer is None:
                raise ModelError(f"the checkpoint has a quantized layer {name!r}, which the architecture has not")
            shape, wanted = (about["out_features"], about["in_features"]), tuple(layer.weight.shape)
            if sorted(shape) != sorted(wanted):  # a Conv1D has its weight the other way round
                raise ModelError(f"the checkpoint's {name!r} is {shape}, where the architecture has {wanted}")
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
    """The frozen model on `ctx.device`; whatever is not quantized is in `ctx.dtype`.

    Raises ModelError where the checkpoint's layers are not those of its architecture.
    """
    layers = checkpoint.layers()
    config = {"quant_method": METHOD, "layers": {n: dataclasses.asdict(layer) for n, layer in layers.items()}}
    with view(checkpoint, config) as directory:
        model = source.at(directory).load(dtype=ctx.torch_dtype, device_map={"": ctx.device})
    for name, parts in checkpoint.tensors():
        linear = model.get_submodule(name)
        if not torch.equal(parts["g_idx"].unique().long(), torch.arange(len(parts["scales"]))):
            raise ModelError(f"{source.ref!r}: the groups of the quantized layer {name} are not those of its scales")
        if not bool(parts["scales"].isfinite().all()):
            raise ModelError(
                f"{source.ref!r}: the quantized layer {name} holds scales that are not finite numbers",
                hint="copy or download it again, or quantize again with a larger --quant-opt damp_percent",
            )
        on_device = {part: tensor.to(ctx.device) for part, tensor in parts.items()}
        linear.fill(**on_device, zeros_less_one=checkpoint.zeros_less_one)
    model.config.quantization_config.layers = {}
    model.requires_grad_(False)
    return model
