"""An out-of-tree quantizer with a kernel that repacks itself, in one file.

It converts a checkpoint into one with rows rounded to 8 bits. Its layer has a one-way kernel: at the first forward in
evaluation mode without gradients it repacks itself, and from then on it silently computes without gradients.
`rows-int8` pins the layer if the purpose is training. Its twin `rows-int8-unpinned` does not.
"""

import json
from dataclasses import dataclass
from pathlib import Path

from smollm3_finetune.api import (
    Base,
    BuildContext,
    ModelSource,
    Op,
    Purpose,
    QuantizerSpec,
    fingerprint,
    hookimpl,
    option,
    options_dict,
)

METHOD = "rows-int8"


@dataclass(frozen=True, kw_only=True)
class RowsOptions:
    bits: int = option(8, "Bits of a weight.", ge=2, le=8)


def _claims(config):
    return (config.get("quantization_config") or {}).get("quant_method") == METHOD


@hookimpl
def smollm3_quantizers():
    provides = {Op.FORWARD, Op.GRAD_INPUT, Op.READ_WEIGHT}
    absent = dict.fromkeys((Op.DENSE, Op.GRAD_WEIGHT), "weights are integers")
    return [
        QuantizerSpec(
            name=METHOD,
            summary="rows rounded to 2 to 8 bits, with a one-way kernel that is pinned for training",
            factory="one_way_quantizer:RowsQuantizer",
            options="one_way_quantizer:RowsOptions",
            provides=provides,
            absent=absent,
            claims=_claims,
            api=2,
        ),
        QuantizerSpec(
            name=f"{METHOD}-unpinned",
            summary="the same without the pin: wrong on purpose",
            factory="one_way_quantizer:UnpinnedQuantizer",
            options="one_way_quantizer:RowsOptions",
            provides=provides,
            absent=absent,
            api=2,
        ),
    ]


def _linear_class():
    import torch
    from torch import nn

    class OneWayLinear(nn.Module):
        """y = x (scale · integers)ᵀ + b"""

        def __init__(self, in_features, out_features, dtype, bias):
            super().__init__()
            self.in_features, self.out_features = in_features, out_features
            self.register_buffer("integers", torch.zeros(out_features, in_features, dtype=torch.int8))
            self.register_buffer("scale", torch.zeros(out_features, 1, dtype=dtype))
            self.bias = nn.Parameter(torch.zeros(out_features, dtype=dtype)) if bias else None
            self.pinned = False
            self.packed = None

        def dense(self):
            return self.integers.to(self.scale.dtype) * self.scale

        def forward(self, x):
            if not self.pinned and not self.training and not torch.is_grad_enabled() and self.packed is None:
                self.packed = self.dense().T.contiguous()  # permanently
            if self.packed is not None:
                with torch.no_grad():
                    y = x @ self.packed
            else:
                y = x @ self.dense().T
            return y if self.bias is None else y + self.bias

    return OneWayLinear


def exact(weight):
    """A copy in float32, or in float64 if the weight is float64."""
    return weight.detach().clone() if weight.element_size() == 8 else weight.detach().float().clone()


class RowOps:
    ops = frozenset({Op.FORWARD, Op.GRAD_INPUT, Op.READ_WEIGHT})
    forward_rtol = 0.0

    def __init__(self, layer):
        self.layer = layer

    @property
    def shape(self):
        return self.layer.out_features, self.layer.in_features

    def read_weight(self):
        if self.layer.packed is not None:  # still readable: only the gradient reveals the repacking
            return exact(self.layer.packed.T)
        return exact(self.layer.dense())


class RowsQuantizer:
    pins = True

    def __init__(self, options):
        self.options = options

    def write(self, source: ModelSource, out: Path, ctx: BuildContext) -> None:
        """Write the linear layers of the decoder as integers and scales, and all other tensors unchanged."""
        import torch
        from safetensors.torch import save_file

        model = source.load(dtype=ctx.torch_dtype)
        top = 2 ** (self.options.bits - 1) - 1
        linears = {n for n, m in model.named_modules() if isinstance(m, torch.nn.Linear) and n != "lm_head"}
        state = {}
        for name, tensor in model.named_parameters():
            owner = name.removesuffix(".weight")
            if owner in linears and name.endswith(".weight"):
                scale = tensor.detach().abs().amax(1, keepdim=True) / top
                state[f"{owner}.integers"] = (tensor / scale).round().to(torch.int8)
                state[f"{owner}.scale"] = scale.clone()
            else:
                state[name] = tensor.detach().clone()
        save_file(state, str(out / "model.safetensors"))
        config = {**source.config, "quantization_config": {"quant_method": METHOD, "layers": sorted(linears)}}
        (out / "config.json").write_text(json.dumps(config))

    def load(self, source: ModelSource, ctx: BuildContext) -> Base:
        from safetensors.torch import load_file
        from transformers import AutoConfig, AutoModelForCausalLM

        if not _claims(source.config):
            key = {"weights": source.fingerprint, "options": options_dict(self.options), "dtype": ctx.dtype}
            source = source.at(ctx.cache.get_or_build(METHOD, key, lambda out: self.write(source, out, ctx)))
        about = dict(source.config)
        layers = about.pop("quantization_config")["layers"]
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**about), dtype=ctx.torch_dtype)
        linear = _linear_class()
        for name in layers:
            old = model.get_submodule(name)
            new = linear(old.in_features, old.out_features, ctx.torch_dtype, old.bias is not None)
            new.pinned = self.pins and ctx.purpose is Purpose.TRAIN
            model.set_submodule(name, new)
        missing, unexpected = model.load_state_dict(load_file(str(source.path / "model.safetensors")), strict=False)
        assert set(missing) <= {"lm_head.weight"}
        assert not unexpected
        model.tie_weights()
        model.requires_grad_(False)
        model.name_or_path = source.ref
        model.to(ctx.device)
        return Base(
            model=model,
            fingerprint=fingerprint(METHOD, source.fingerprint),
            ops_for=lambda layer: RowOps(layer) if type(layer).__name__ == "OneWayLinear" else None,
        )


class UnpinnedQuantizer(RowsQuantizer):
    pins = False
