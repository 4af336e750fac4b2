"""Quantizers with one fault each, and `rows`, `rows-written`, `rows-sealed` and `groups`, which are correct.

They round rows to 8 bits with one scale each. The overridden method of a class is its fault.
"""

import json
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cache, partial

from smollm3_finetune.api import (
    Base,
    ConfigError,
    Op,
    QuantizerSpec,
    UnsupportedOp,
    check_layerwise,
    fingerprint,
    frozen_linear,
    hookimpl,
    load_layerwise,
    ops_for_layers,
    option,
    refuse_quantized,
    stack_ops_for,
)

TRAINS = {Op.FORWARD, Op.GRAD_INPUT, Op.READ_WEIGHT}
SEALED = {Op.FORWARD, Op.GRAD_INPUT}
ONLY_FORWARD = {Op.FORWARD, Op.READ_WEIGHT}
METHOD = "rows-written"


@dataclass(frozen=True, kw_only=True)
class RowOptions:
    bits: int = option(8, "Bits per weight.", ge=2, le=8)


@dataclass(frozen=True, kw_only=True)
class GroupOptions(RowOptions):
    group_size: int | None = option(None, "Inputs that share a scale; none: a whole row.", ge=8, multiple_of=8)
    skip_modules: tuple[str, ...] = option((), "Names of layers to leave unquantized.")


def mine(config):
    return (config.get("quantization_config") or {}).get("quant_method") == METHOD


def any_method(config):
    return "quant_method" in (config.get("quantization_config") or {})


VARIANTS = {
    "rows": ("Rows", TRAINS, None),
    "rows-sealed": ("Sealed", SEALED, None),
    "rows-written": ("Written", TRAINS, mine),
    "transposed": ("Transposed", TRAINS, None),
    "stale-scale": ("StaleScale", TRAINS, None),
    "no-gradient": ("NoGradient", TRAINS, None),
    "one-way": ("OneWay", TRAINS, None),
    "base-trains": ("BaseTrains", TRAINS, None),
    "gradient-factor": ("GradientFactor", TRAINS, None),
    "gives-a-view": ("GivesAView", TRAINS, None),
    "head-too": ("HeadToo", TRAINS, None),
    "views-all": ("ViewsAll", TRAINS, None),
    "undequantized": ("Undequantized", TRAINS, None),
    "dropped-bias": ("DroppedBias", TRAINS, None),
    "unseeded": ("Unseeded", TRAINS, None),
    "constant-fingerprint": ("ConstantFingerprint", TRAINS, None),
    "options-not-in-fingerprint": ("OptionsNotInFingerprint", TRAINS, None),
    "half-sealed": ("HalfSealed", SEALED, None),
    "half-dense": ("HalfDense", TRAINS, None),
    "half-trains": ("HalfTrains", ONLY_FORWARD, None),
    "over-declared": ("Sealed", TRAINS, None),
    "own-tensor": ("OwnTensor", TRAINS, None),
    "half-precision": ("HalfPrecision", TRAINS, None),
    "unseen": ("Unseen", TRAINS, None),
    "too-coarse": ("TooCoarse", TRAINS, None),
    "claims-others": ("Written", TRAINS, any_method),
    "pickled": ("Pickled", TRAINS, mine),
    "no-reason": ("Rows", TRAINS, None),
    "no-autocast": ("NoAutocast", TRAINS, None),
    "dtype-unnamed": ("DtypeUnnamed", TRAINS, None),
    "groups": ("Groups", TRAINS, None),
    "loads-quantized": ("Groups", TRAINS, None),
    "groups-late": ("GroupsLate", TRAINS, None),
    "raises-others": ("RaisesOthers", TRAINS, None),
    "skips-nothing": ("SkipsNothing", TRAINS, None),
    "skips-by-order": ("SkipsByOrder", TRAINS, None),
    "one-token-kernel": ("OneTokenKernel", TRAINS, None),
    "experts-dense": ("Rows", TRAINS, None),
    "experts-swapped": ("ExpertsSwapped", TRAINS, None),
    "experts-coarse": ("ExpertsCoarse", TRAINS, None),
    "experts-keep-update": ("ExpertsKeepUpdate", TRAINS, None),
}
EXPERTS = {"experts-swapped", "experts-coarse", "experts-keep-update"}
CHECKED = EXPERTS | {"groups", "groups-late", "raises-others", "skips-nothing", "skips-by-order", "loads-quantized"}
"""Those with a `check`, a group size and modules to skip."""


def accept(options, source):
    """Refuses nothing."""


def check(name):
    if name == "loads-quantized":
        return accept
    if name == "groups-late":
        return lambda options, source: refuse_quantized(name, source)
    return check_layerwise(name) if name in CHECKED else None


@hookimpl
def smollm3_quantizers():
    return [
        QuantizerSpec(
            name=name,
            summary=name,
            factory=f"broken_quantizers:{cls}",
            options=f"broken_quantizers:{'Group' if name in CHECKED else 'Row'}Options",
            provides=provides,
            absent={} if name == "no-reason" else dict.fromkeys(set(Op) - provides, "it is left out"),
            claims=claims,
            check=check(name),
            api=2,
        )
        for name, (cls, provides, claims) in VARIANTS.items()
    ]


@cache
def linear_class():
    import torch
    from torch import nn

    class RowLinear(nn.Module):
        def __init__(self, owner, codes, scale, bias):
            super().__init__()
            self.owner = owner
            self.out_features, self.in_features = codes.shape
            self.register_buffer("codes", codes)
            self.register_buffer("scale", scale)
            self.bias = bias
            self.repacked = None

        def dense(self):
            return self.codes.to(self.scale.dtype) * self.scale

        def forward(self, x):
            return self.owner.multiply(self, x)

    class Scaled(torch.autograd.Function):
        """The identity with a gradient that is a tenth too large."""

        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, gradient):
            return 1.1 * gradient

    class Flat(torch.autograd.Function):
        """The identity, which returns a view."""

        @staticmethod
        def forward(ctx, x):
            ctx.shape = x.shape
            return x.view(x.shape)

        @staticmethod
        def backward(ctx, gradient):
            return gradient

    class Strict(torch.autograd.Function):
        """x Wᵀ with one W for both directions."""

        @staticmethod
        def forward(ctx, x, weight):
            ctx.weight = weight
            return torch.nn.functional.linear(x, weight)

        @staticmethod
        def backward(ctx, gradient):
            return gradient @ ctx.weight, None

    RowLinear.scaled = staticmethod(Scaled.apply)
    RowLinear.strict = staticmethod(Strict.apply)
    RowLinear.viewed = staticmethod(Flat.apply)
    return RowLinear


class RowOps:
    forward_rtol = 0.0

    def __init__(self, layer):
        self.layer = layer

    @property
    def ops(self):
        return frozenset(self.layer.owner.operations)

    @property
    def shape(self):
        return self.layer.out_features, self.layer.in_features

    def read_weight(self):
        return self.layer.owner.read(self.layer)


class Rows:
    operations = TRAINS

    def __init__(self, options):
        self.options = options

    def bits(self):
        return self.options.bits

    def codes(self, weight):
        """Integer codes and one scale per row of a weight (out, in)."""
        import torch

        top = 2 ** (self.bits() - 1) - 1
        scale = weight.abs().amax(1, keepdim=True) / top
        return self.to_integer(weight / scale).clamp(-top, top).to(torch.int8), scale

    def to_integer(self, x):
        return x.round()

    def multiply(self, layer, x):
        from torch.nn import functional as F

        return F.linear(x, layer.dense(), layer.bias)

    def read(self, layer):
        return layer.dense()

    def ops_for(self, layer):
        return RowOps(layer) if isinstance(layer, linear_class()) else None

    def bias(self, linear):
        return linear.bias

    def identity(self, source, ctx):
        return fingerprint("rows", source.fingerprint, self.options.bits, ctx.dtype)

    def freeze(self, model):
        model.requires_grad_(False)

    def load(self, source, ctx):
        from torch import nn

        model = source.load(dtype=ctx.torch_dtype)
        head = self.head_to_skip(model)
        for name, layer in list(model.named_modules()):
            if isinstance(layer, nn.Linear) and layer is not head:
                codes, scale = self.codes(layer.weight.detach())
                model.set_submodule(
                    name, self.finish_layer(layer, linear_class()(self, codes, scale, self.bias(layer)))
                )
        self.freeze(model)
        return Base(model=model, fingerprint=self.identity(source, ctx), ops_for=self.ops_for)

    def head_to_skip(self, model):
        return model.get_output_embeddings()

    def finish_layer(self, linear, quantized):
        return quantized


class Sealed(Rows):
    operations = SEALED

    def read(self, layer):
        raise UnsupportedOp("these weights cannot be read")


class Transposed(Rows):
    def read(self, layer):
        weight = layer.dense()
        return weight.T.contiguous() if layer.out_features == layer.in_features else weight


class StaleScale(Rows):
    """The first evaluation changes the scales; `read_weight` still uses the old ones."""

    def multiply(self, layer, x):
        import torch

        if layer.repacked is None and not torch.is_grad_enabled():
            layer.repacked = layer.scale.clone()
            layer.scale *= 1.001
        return super().multiply(layer, x)

    def read(self, layer):
        return layer.codes * (layer.scale if layer.repacked is None else layer.repacked)


class NoGradient(Rows):
    def multiply(self, layer, x):
        import torch

        with torch.no_grad():
            return super().multiply(layer, x)


class OneWay(Rows):
    """The first evaluation repacks the layer for a kernel without gradients."""

    def multiply(self, layer, x):
        import torch

        if layer.repacked is None and not layer.training and not torch.is_grad_enabled():
            layer.repacked = True
        return super().multiply(layer, x if layer.repacked is None else x.detach())


class BaseTrains(Rows):
    def freeze(self, model):
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name.endswith("norm.weight"))


class GradientFactor(Rows):
    def multiply(self, layer, x):
        return super().multiply(layer, layer.scaled(x))


class GivesAView(Rows):
    def multiply(self, layer, x):
        return layer.viewed(super().multiply(layer, x))


class HalfTrains(GradientFactor):
    """grad-input is not declared, but a wrong gradient arrives."""

    operations = ONLY_FORWARD


class DroppedBias(Rows):
    def bias(self, linear):
        return None


class Unseeded(Rows):
    """Rounds up or down at random, with torch's global generator."""

    def to_integer(self, x):
        import torch

        return (x + torch.rand_like(x) - 0.5).round()


class ConstantFingerprint(Rows):
    def identity(self, source, ctx):
        return "rows"


class OptionsNotInFingerprint(Rows):
    def identity(self, source, ctx):
        return fingerprint("rows", source.fingerprint)


class HalfSealed(Rows):
    """read-weight is not declared, but returns a weight anyway."""

    operations = SEALED


class HalfDense(Rows):
    """Keeps the original weight, which the forward does not use."""

    def finish_layer(self, linear, quantized):
        quantized.weight = linear.weight
        return quantized


class HeadToo(Rows):
    def head_to_skip(self, model):
        return None


class ViewsAll(Rows):
    """Returns ops for every linear layer, quantized or not."""

    def ops_for(self, layer):
        from torch import nn

        if type(layer) is nn.Linear:
            layer.owner, layer.dense = self, lambda: layer.weight.detach().clone()
            return RowOps(layer)
        return super().ops_for(layer)


class Undequantized(Rows):
    """Returns its weight as a tensor subclass."""

    def read(self, layer):
        import torch

        class Packed(torch.Tensor):
            pass

        return layer.dense().as_subclass(Packed)


class OwnTensor(Rows):
    def read(self, layer):
        if layer.repacked is None:
            layer.repacked = layer.dense()
        return layer.repacked


class HalfPrecision(Rows):
    def read(self, layer):
        return layer.dense().half()


class Unseen(Rows):
    def ops_for(self, layer):
        return None


class TooCoarse(Rows):
    """Claims 8 bits, but rounds to 5."""

    def bits(self):
        return 5


class NoAutocast(Rows):
    """Its backward multiplies by a weight in the dtype of the input, whatever the dtype of the gradient."""

    def multiply(self, layer, x):
        return layer.strict(x, layer.dense()) + (0 if layer.bias is None else layer.bias)


class DtypeUnnamed(Rows):
    def identity(self, source, ctx):
        return fingerprint("rows", source.fingerprint, self.options.bits)


class Groups:
    """Rounds groups of inputs, by `load_layerwise`."""

    def __init__(self, options):
        self.options = options

    def identity(self, ctx):
        return (self.options.bits, self.options.group_size, sorted(self.options.skip_modules), ctx.dtype)

    def replaced(self, linear):
        return grouped_class()(linear, self.options.bits, self.options.group_size or linear.in_features)

    def about(self, ctx):
        layer = grouped_class()
        return {
            "name": "groups",
            "replace": self.replaced,
            "ops": ops_for_layers(layer, layer.dense, ctx.torch_dtype),
            "identity": self.identity(ctx),
            "skip_modules": self.options.skip_modules,
            "group_size": self.options.group_size,
        }

    def load(self, source, ctx):
        return load_layerwise(source, ctx, **self.about(ctx))


@cache
def grouped_class():
    import torch
    from torch import nn

    class GroupLinear(nn.Module):
        def __init__(self, linear, bits, group_size):
            super().__init__()
            self.in_features, self.out_features = linear.in_features, linear.out_features
            groups = linear.weight.detach().unflatten(1, (-1, group_size))  # (out, groups, size)
            self.register_buffer("scale", groups.abs().amax(2, keepdim=True) / (2 ** (bits - 1) - 1))
            self.register_buffer("codes", (groups / self.scale).round().to(torch.int8))
            self.bias = linear.bias

        def dense(self):
            return (self.codes.to(self.scale.dtype) * self.scale).flatten(1)

        def forward(self, x):
            return frozen_linear(x, self.dense, self.bias)

    return GroupLinear


class GroupsLate(Groups):
    """Finds out that groups do not fit when it rounds them."""

    def about(self, ctx):
        return {**super().about(ctx), "group_size": None}


class RaisesOthers(Groups):
    """Its errors are not for users."""

    def load(self, source, ctx):
        try:
            return super().load(source, ctx)
        except ConfigError as e:
            raise ValueError(e.message) from e


class SkipsNothing(Groups):
    def about(self, ctx):
        return {**super().about(ctx), "skip_modules": ()}


class SkipsByOrder(Groups):
    def identity(self, ctx):
        return (*super().identity(ctx), self.options.skip_modules)


class OneTokenKernel(Rows):
    """Multiplies a single token with a kernel whose scales are wrong."""

    def multiply(self, layer, x):
        y = super().multiply(layer, x)
        return 1.01 * y if x.ndim == 3 and x.shape[1] == 1 else y


class ExpertsSwapped(Groups):
    """The experts of a stack are in the wrong order, except in what is read."""

    def load(self, source, ctx):
        base = super().load(source, ctx)
        for module in base.model.modules():
            if stack_ops_for(module) is not None:
                module._layers = module._layers[::-1]
        return base


class ExpertsCoarse(Groups):
    """Rounds experts to 4 bits."""

    def load(self, source, ctx):
        base = super().load(source, ctx)
        for module in base.model.modules():
            if stack_ops_for(module) is not None:
                for layer in module._layers:
                    layer.codes = (layer.codes / 16).round() * 16
        return base


class ExpertsKeepUpdate(Groups):
    """The update of an adapter stays when its context ends."""

    def load(self, source, ctx):
        base = super().load(source, ctx)
        for module in base.model.modules():
            if stack_ops_for(module) is not None:
                module.updated = partial(self.update, module)
        return base

    def update(self, stack, up, down, scaling):
        from smollm3_finetune.api.experts import Update

        stack.update = Update(up, down, scaling)
        return nullcontext()


class Written(Rows):
    def write(self, source, out, ctx):
        from torch import nn

        model = source.load(dtype=ctx.torch_dtype)
        head = model.get_output_embeddings()
        linear = {n for n, m in model.named_modules() if isinstance(m, nn.Linear) and m is not head}
        state = {}
        for name, tensor in model.named_parameters():
            layer = name.removesuffix(".weight")
            if layer in linear:
                state[f"{layer}.codes"], state[f"{layer}.scale"] = self.codes(tensor.detach())
            else:
                state[name] = tensor.detach().clone()
        self.store(state, out)
        about = {"quant_method": METHOD, "layers": sorted(linear)}
        (out / "config.json").write_text(json.dumps({**source.config, "quantization_config": about}))

    def store(self, state, out):
        from safetensors.torch import save_file

        save_file(state, str(out / "model.safetensors"))

    def stored(self, directory):
        from safetensors.torch import load_file

        return load_file(str(directory / "model.safetensors"))

    def load(self, source, ctx):
        from transformers import AutoConfig, AutoModelForCausalLM

        if not mine(source.config):
            key = {"weights": source.fingerprint, "bits": self.options.bits, "dtype": ctx.dtype}
            source = source.at(ctx.cache.get_or_build(METHOD, key, lambda out: self.write(source, out, ctx)))
        about = dict(source.config)
        layers = about.pop("quantization_config")["layers"]
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**about), dtype=ctx.torch_dtype)
        state = self.stored(source.path)
        for name in layers:
            codes, scale = state.pop(f"{name}.codes"), state.pop(f"{name}.scale")
            bias = model.get_submodule(name).bias
            model.set_submodule(name, linear_class()(self, codes, scale, bias))
        model.load_state_dict(state, strict=False)
        model.tie_weights()
        model.requires_grad_(False)
        return Base(model=model.eval(), fingerprint=fingerprint(METHOD, source.fingerprint), ops_for=self.ops_for)


class Pickled(Written):
    def store(self, state, out):
        import torch

        torch.save(state, out / "pytorch_model.bin")

    def stored(self, directory):
        import torch

        return torch.load(directory / "pytorch_model.bin")
