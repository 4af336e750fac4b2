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

from smollm3_finetune.api import BuildContext, ModelError, ModelSource, stacked_weights
from smollm3_gptq.checkpoint import PARTS, WORD, Checkpoint, view
from smollm3_gptq.linear import GPTQLinear, ops_in
from smollm3_gptq.placing import Unplaced, linear_shapes, place, stack_shapes

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Experts = tuple[Any, dict[str, GPTQLinear]]
"""A stacked weight of experts, and the layers that replace it, by name."""
METHOD = "smollm3-gptq"
"""The value of `quant_method` while transformers loads; for the name gptq, transformers would use optimum."""


@register_quantization_config(METHOD)
class _Layers(QuantizationConfigMixin):  # type: ignore[misc]
    """The layers to replace: name to the fields of its `checkpoint.Layer`."""

    def __init__(self, layers: dict[str, dict[str, Any]] | None = None, **kwargs: Any) -> None:
        self.quant_method = METHOD
        self.layers = layers or {}
        self.experts: list[Experts] = []


@register_quantizer(METHOD)
class _Replacer(HfQuantizer):  # type: ignore[misc]
    """Inserts `GPTQLinear` layers without codes into the model before transformers reads weights."""

    def _process_model_before_weight_loading(self, model: PreTrainedModel, **kwargs: Any) -> PreTrainedModel:
        layers = self.quantization_config.layers
        shapes = {name: (about["out_features"], about["in_features"]) for name, about in layers.items()}
        try:
            placed = place(shapes, linear_shapes(model), stack_shapes(model))
        except Unplaced as e:
            raise ModelError(f"the checkpoint has {e}") from None
        self.quantization_config.experts = self._take_experts(model, placed)
        not_read = [rf"\.({'|'.join(PARTS)})$"]
        for name, parts in placed.items():
            layer = model.get_submodule(name)
            linear = _empty(name, parts, layers)
            out = linear.out_features
            bias = getattr(layer, "bias", None)
            if len(parts) > 1:  # the biases of the parts are joined after loading
                not_read += [rf"^{re.escape(part)}\.bias$" for part in parts]
            elif bias is not None:
                linear.bias = bias
            elif layers[name]["bias"]:
                linear.bias = nn.Parameter(torch.empty(out, device="meta"))
            else:
                not_read.append(rf"^{re.escape(name)}\.bias$")
            linear.weight = _initialized()
            model.set_submodule(name, linear)
        ignored = model._keys_to_ignore_on_load_unexpected or ()
        model._keys_to_ignore_on_load_unexpected = {*ignored, *not_read}
        return model

    def _take_experts(self, model: PreTrainedModel, placed: dict[str, tuple[str, ...]]) -> list[Experts]:
        """Remove the stacked weights whose experts are in `placed` from the model, and their places from `placed`."""
        layers = self.quantization_config.layers
        taken = []
        for name, weight in stacked_weights(model).items():
            places = [f"{name}.{expert}" for expert in range(weight.sizes[0])]
            if places[0] not in placed:
                continue
            taken.append((weight, {place: _empty(place, placed.pop(place), layers) for place in places}))
            delattr(weight.owner, weight.name)
            setattr(weight.owner, weight.name, _initialized())
        return taken

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
    about: Any = model.config.quantization_config
    linears = {name: module for name, module in model.named_modules() if isinstance(module, GPTQLinear)}
    for linear in linears.values():
        del linear.weight
    for weight, experts in about.experts:
        weight.put(list(experts.values()), ops_in(ctx.torch_dtype), ctx.torch_dtype)
        linears.update(experts)
    for name, linear in linears.items():
        parts = _joined(source, name, [checkpoint.tensors(part) for part in linear.parts], linear.bits)
        if len(linear.parts) > 1:
            linear.bias = _joined_bias(checkpoint, linear, ctx)
        if not torch.equal(parts["g_idx"].unique().long(), torch.arange(len(parts["scales"]))):
            raise ModelError(f"{source.ref!r}: the groups of the quantized layer {name} do not match its scales")
        if not bool(parts["scales"].isfinite().all()):
            raise ModelError(
                f"{source.ref!r}: the quantized layer {name} contains scales that are not finite",
                hint="copy or download it again, or quantize again with a larger --quant-opt damp_percent",
            )
        on_device = {part: tensor.to(ctx.device) for part, tensor in parts.items()}
        linear.fill(**on_device, zeros_less_one=checkpoint.zeros_less_one)
    about.layers, about.experts = {}, []
    model.requires_grad_(False)
    return model


def _empty(name: str, parts: tuple[str, ...], layers: dict[str, dict[str, Any]]) -> GPTQLinear:
    """A layer without codes for these parts of the checkpoint. Raises ModelError if their numbers of bits differ."""
    widths = {layers[part]["bits"] for part in parts}
    if len(widths) > 1:
        raise ModelError(f"the parts of {name!r} have {' and '.join(map(str, sorted(widths)))} bits")
    out = sum(layers[part]["out_features"] for part in parts)
    linear = GPTQLinear(layers[parts[0]]["in_features"], out, widths.pop())
    linear.parts = parts
    return linear


def _initialized() -> torch.Tensor:
    """Stands in for the weight of a layer while transformers loads: some `_init_weights` set those of other layers."""
    weight = torch.empty(0)
    weight._is_hf_initialized = True
    return weight


def _joined(source: ModelSource, name: str, layers: list[dict[str, Any]], bits: int) -> dict[str, Any]:
    """The tensors of a layer from those of its parts, whose outputs follow one another. Nothing is rounded."""
    if len(layers) == 1:
        return layers[0]
    first = layers[0]["g_idx"]
    if any(not torch.equal(parts["g_idx"], first) for parts in layers):
        raise ModelError(
            f"{source.ref!r}: the parts of the fused layer {name} group their input features differently",
            hint="quantize again with --quant-opt desc_act=false",
        )
    if any(parts["scales"].shape[1] * bits % WORD for parts in layers[:-1]):
        raise ModelError(f"{source.ref!r}: the zero points of a part of the fused layer {name} end within a word")
    joined = {part: torch.cat([parts[part] for parts in layers], dim=1) for part in ("qweight", "qzeros", "scales")}
    return {**joined, "g_idx": first}


def _joined_bias(checkpoint: Checkpoint, linear: GPTQLinear, ctx: BuildContext) -> nn.Parameter | None:
    """The bias of a fused layer; a part without a bias has zeros. None if no part has one."""
    biases = [checkpoint.bias(part) for part in linear.parts]
    if all(b is None or not b.any() for b in biases):
        return None
    sizes = [checkpoint.tensors(part)["scales"].shape[1] for part in linear.parts]
    whole = torch.cat([torch.zeros(n) if b is None else b.float() for b, n in zip(biases, sizes, strict=True)])
    return nn.Parameter(whole.to(ctx.device, ctx.torch_dtype), requires_grad=False)
