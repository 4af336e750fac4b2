"""For quantizers that replace linear layers while a model is loaded: the whole of `load` and `check`, and its parts.

Import everything from `smollm3_finetune.api`. torch and transformers are imported when a function is called.

    class Int4Quantizer:
        def load(self, source, ctx):
            return load_layerwise(
                source, ctx, name="int4", replace=Int4Linear, identity=(ctx.dtype,),
                ops=ops_for_layers(Int4Linear, Int4Linear.dense, ctx.torch_dtype),
            )
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from smollm3_finetune.api.capabilities import Env, Op
from smollm3_finetune.api.models import Base, BuildContext, LinearOps, ModelSource, StackOps, StoredLayers
from smollm3_finetune.cache.fingerprint import fingerprint
from smollm3_finetune.errors import ConfigError, IncompatibleError

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn
    from transformers import PreTrainedModel

    from smollm3_finetune.api.dense_experts import StackedWeight

FULL_PRECISION = "use the full-precision checkpoint"

EXACT_IN: Mapping[str, frozenset[str]] = {
    "bfloat16": frozenset({"bfloat16", "float32", "float64"}),
    "float16": frozenset({"float16", "float32", "float64"}),
    "float32": frozenset({"float32", "float64"}),
    "float64": frozenset({"float64"}),
}
"""Dtype of a checkpoint to the run dtypes that hold its values without rounding."""

DEQUANTIZABLE: frozenset[Op] = frozenset({Op.FORWARD, Op.GRAD_INPUT, Op.READ_WEIGHT})
"""The operations of a quantizer whose layers dequantize a frozen weight: the `provides` of its descriptor."""


def packed_reasons(text: str) -> dict[Op, str]:
    """Reasons why the weights of a packed kernel cannot be replaced or trained: the `absent` of its descriptor. Light.

    `text` says how the weights are stored, as a clause:

        QuantizerSpec(…, provides=DEQUANTIZABLE, absent=packed_reasons("weights are stored as 4-bit codes"))
    """
    return {
        Op.DENSE: f"{text}, so `.weight` is not a floating-point matrix",
        Op.GRAD_WEIGHT: f"{text}, which cannot take a gradient step",
    }


@dataclass(frozen=True)
class DequantizingOps:
    """The `LinearOps` of a frozen layer that multiplies by its dequantized weight, forward and backward."""

    layer: Any
    """With `out_features` and `in_features`."""
    read: Callable[[Any], Tensor]
    """The layer's dequantized weight (out, in), as a new tensor."""
    compute: torch.dtype
    """The dtype in which the model computes; the forward rounds the weight to it."""

    @property
    def ops(self) -> frozenset[Op]:
        """`DEQUANTIZABLE`."""
        return DEQUANTIZABLE

    @property
    def forward_rtol(self) -> float:
        """0: the layer dequantizes and multiplies."""
        return 0.0

    @property
    def shape(self) -> tuple[int, int]:
        """(out_features, in_features)"""
        return self.layer.out_features, self.layer.in_features

    def read_weight(self) -> Tensor:
        """The weight (out, in) that the forward multiplies by, as a new tensor, float32 or wider."""
        import torch

        with torch.no_grad():
            weight = self.read(self.layer)
            wide = torch.promote_types(weight.dtype, torch.float32)
            return weight.to(self.compute).to(wide)


def ops_for_layers(
    layer_type: type[nn.Module], read: Callable[[Any], Tensor], dtype: torch.dtype
) -> Callable[[nn.Module], LinearOps | None]:
    """`Base.ops_for` of a model whose quantized layers are all of one type.

    A layer of `layer_type` has `out_features` and `in_features`. `read(layer)` returns its dequantized weight
    (out, in) as a new tensor. `dtype` is the dtype in which the model computes: `ctx.torch_dtype`.

        ops_for_layers(Int4Linear, Int4Linear.dense, ctx.torch_dtype)
    """

    def ops_for(layer: nn.Module) -> LinearOps | None:
        return DequantizingOps(layer, read, dtype) if isinstance(layer, layer_type) else None

    return ops_for


def frozen_linear(x: Tensor, dequantize: Callable[[], Tensor], bias: Tensor | None = None) -> Tensor:
    """y = x Wᵀ + bias for a frozen weight, which is dequantized in the forward pass and again in the backward pass.

    `x` is (…, in). `dequantize()` returns W (out, in) as a new tensor of any floating-point dtype; it is cast to the
    dtype of the tensor that it is multiplied by. `bias` is (out,), and receives its gradient if it requires one.
    Returns (…, out) in the dtype of `x`, or under autocast in that of autocast, as `torch.nn.functional.linear` does.

    Autograd keeps neither W nor `x` until the backward pass, only `dequantize`. With `torch.nn.functional.linear` it
    would keep every W, which takes as much memory as the unquantized model.

        class Int4Linear(nn.Module):
            def forward(self, x):
                return frozen_linear(x, self.dense, self.bias)
    """
    from smollm3_finetune.api.frozen import multiply

    return multiply(x, dequantize, bias)


def frozen_linear_bytes(weights: int, env: Env, *, peak: float = 4) -> int:
    """The `transient` of `LayerBytes` for a layer that uses `frozen_linear` and dequantizes to float32. Light.

    `weights` is out · in. `peak` is the most that `dequantize()` allocates, in bytes for each weight; its result has 4.
    In a run of another dtype, the result is cast, and both exist for a moment.
    """
    cast = {"bfloat16": 2, "float16": 2, "float64": 8}.get(env.dtype, 0)
    return round(weights * max(peak, 4 + cast))


def load_layerwise(
    source: ModelSource,
    ctx: BuildContext,
    *,
    name: str,
    replace: Callable[[nn.Linear], nn.Module],
    ops: Callable[[nn.Module], LinearOps | None],
    identity: Sequence[Any],
    skip_modules: Sequence[str] = (),
    group_size: int | None = None,
    along: Literal["in_features", "out_features"] = "in_features",
    check_layer: Callable[[str, nn.Linear], None] | None = None,
    stored: StoredLayers | None = None,
) -> Base:
    """The `load` of a quantizer that replaces the linear layers of a full-precision model one by one.

    Returns the frozen model on `ctx.device`. Stacked weights of experts are quantized too, one linear layer for each
    expert; see `stack_ops_for`. The output head, what `skip_modules` names, and everything else stay as they are, in
    `ctx.dtype`. Needs memory for the whole model in `ctx.dtype`.

    Args:
        name: The quantizer's name, for errors, the progress bar and the fingerprint.
        replace: Returns the quantized layer for a linear layer (out, in), which is on the CPU. The dense weight is
            freed before the next layer. May change and return the layer that it is given.
        ops: `Base.ops_for`, such as `ops_for_layers(…)`.
        identity: What determines the quantized values beside the weights of `source`: options, the version of a
            library, and `rounding_dtype(source, ctx)` or `ctx.dtype`. Hashed into `Base.fingerprint`.
        skip_modules: As in `layers_to_quantize`.
        group_size: Must divide the features of every layer in direction `along`; None: whole rows or columns.
        check_layer: Raises a SmolLM3Error for a layer that cannot be quantized, given its name and the layer.
        stored: How the layers are stored in the cache; None: they are quantized at each load. Storing pays if
            quantizing takes much longer than reading.

    Raises, before weights are read if transformers has the architecture, else before the first layer is replaced:
        IncompatibleError: the source is already quantized, or no layer is left to quantize.
        ConfigError: `skip_modules` has a name that no layer has, or `group_size` does not fit a layer.

    Example:
        load_layerwise(source, ctx, name="int4", replace=lambda linear: Int4Linear(linear, options.group_size),
                       ops=ops_for_layers(Int4Linear, Int4Linear.dense, ctx.torch_dtype),
                       identity=(options_dict(options), ctx.dtype), group_size=options.group_size)
    """

    def checked(model: PreTrainedModel) -> tuple[dict[str, nn.Linear], dict[str, StackedWeight]]:
        layers, stacks = _to_quantize(model, name, source, skip_modules)
        all_layers = {**layers, **{key: stack.linear(0, "meta") for key, stack in stacks.items()}}
        features = {key: getattr(layer, along) for key, layer in all_layers.items()}
        for key, layer in all_layers.items():
            if group_size is not None and features[key] % group_size:
                what = f"the {features[key]} {along} of {key}"
                raise group_size_error(name, group_size, what, list(features.values()))
            if check_layer is not None:
                check_layer(key, layer)
        return layers, stacks

    from smollm3_finetune.api.group_sizes import within
    from smollm3_finetune.api.places import fill, quantized_places

    refuse_quantized(name, source)
    architecture = architecture_of(source)
    if architecture is not None:
        checked(architecture)
    model = source.load(dtype=ctx.torch_dtype)
    layers, stacks = checked(model)
    places = quantized_places(model, layers, stacks, ops, ctx.torch_dtype)
    del layers  # the last references to the dense layers are the model's
    identity = (*identity, "experts") if stacks else identity
    if read := [n for n in linear_layers(model)[1] if not any(within(key, n) for key in skip_modules)]:
        say_unreplaced(name, read, ctx)
        identity = (*identity, sorted(read))

    def quantize() -> None:
        fill(places, replace, ctx.progress, f"quantizing {Path(source.ref).name} with {name}")

    if stored is None:
        quantize()
    else:
        from smollm3_finetune.api.stored_layers import quantize_once

        about = {"weights": source.fingerprint, "quantizer": name, "identity": list(identity), "layers": list(places)}
        quantize_once(places, quantize, stored, ctx=ctx, kind=name, key=about)
    model.requires_grad_(False)
    model.to(ctx.device)
    return Base(model=model, fingerprint=fingerprint(name, source.fingerprint, *identity), ops_for=ops)


def check_layerwise(
    name: str, hint: str = FULL_PRECISION, along: Callable[[Any], Literal["in_features", "out_features"]] | None = None
) -> Callable[[Any, ModelSource], None]:
    """The `check` of the descriptor of a quantizer that uses `load_layerwise`. Light.

    The function that it returns reads `config.json` and headers of files. It raises IncompatibleError, with `hint`, for
    a source that is already quantized. If the options have a `group_size`, it calls `check_group_size` with it and with
    their `skip_modules`. `along(options)` is the direction of the groups; default: in_features.

        QuantizerSpec(name="int4", …, check=check_layerwise("int4"))
    """

    def check(options: Any, source: ModelSource) -> None:
        from smollm3_finetune.api.group_sizes import check_group_size

        refuse_quantized(name, source, hint)
        size, skipped = getattr(options, "group_size", None), getattr(options, "skip_modules", ())
        direction: Literal["in_features", "out_features"] = "in_features" if along is None else along(options)
        check_group_size(name, source, size, skip_modules=skipped, along=direction)

    return check


def architecture_of(source: ModelSource) -> PreTrainedModel | None:
    """The model of a source on the meta device, without weights; None if transformers does not have its code."""
    from smollm3_finetune.model_files.skeleton import skeleton

    return skeleton(source.config)


def layers_to_quantize(
    model: PreTrainedModel, quantizer: str, source: ModelSource, skip_modules: Sequence[str] = ()
) -> dict[str, nn.Linear]:
    """Name to layer: the linear layers of `model`, without its output head and the layers in `skip_modules`.

    A name to skip is one or more whole parts of a layer's dotted name: `k_proj`, `layers.0`, or the name itself.
    Raises ConfigError for a name that no layer and no stacked weight of experts has, IncompatibleError if neither is
    left. Errors name `quantizer`.
    """
    return _to_quantize(model, quantizer, source, skip_modules)[0]


def _to_quantize(
    model: PreTrainedModel, quantizer: str, source: ModelSource, skip_modules: Sequence[str]
) -> tuple[dict[str, nn.Linear], dict[str, StackedWeight]]:
    """`layers_to_quantize`, and the stacked weights of experts."""
    from smollm3_finetune.api.group_sizes import within

    linears, read = linear_layers(model)
    stacks = stacked_weights(model)
    for key in skip_modules:
        if not any(within(key, name) for name in (*linears, *stacks, *read)):
            known = sorted({n.rsplit(".", 1)[-1] for n in (*linears, *stacks)})
            raise ConfigError(
                f"{quantizer}: skip_modules names {key!r}, and {source.ref!r} has no linear layer there",
                hint=f"its linear layers are {', '.join(known) or 'none'}",
            )

    def kept(name: str) -> bool:
        return not any(within(key, name) for key in skip_modules)

    found = {n: m for n, m in linears.items() if kept(n)}
    experts = {n: s for n, s in stacks.items() if kept(n)}
    if not found and not experts:
        raise IncompatibleError(f"{quantizer} finds no linear layer to quantize in {source.ref!r}", hint="--quant none")
    return found, experts


def round_trip_layers(model: PreTrainedModel, quantizer: str, layers: Collection[str]) -> Collection[str]:
    """The `layers` of `RoundTrip` for a quantizer that also quantizes stacked weights of experts: returns `layers`.

    Raises IncompatibleError for a model with experts: their weights are in no layer, so training could not compute
    with the weights that are written. Errors name `quantizer`.

        def layers(self, model):
            return round_trip_layers(model, "int4", layers_to_quantize(model, "int4", self.source))
    """
    if stacks := sorted(stacked_weights(model)):
        raise IncompatibleError(
            f"a model with experts cannot be trained as {quantizer} writes it: {stacks[0]!r} is not a layer",
            hint="leave --ship-as out",
        )
    return layers


def linear_layers(model: nn.Module) -> tuple[dict[str, nn.Linear], list[str]]:
    """The linear layers of `model` by name, without its output head, and the names of those that cannot be replaced.

    A layer cannot be replaced if the model's code reads its weight without calling it, as Mamba does. Subclasses of
    `torch.nn.Linear` are among the layers if they compute the same.
    """
    from smollm3_finetune.api.replaceable import linear_layers

    return linear_layers(model)


def say_unreplaced(quantizer: str, names: Sequence[str], ctx: BuildContext) -> None:
    """Say which linear layers a quantizer leaves as they are because the model's code reads their weights."""
    if names:
        short = ", ".join(sorted({name.rpartition(".")[2] for name in names}))
        layers = f"{len(names)} linear layer{'s' * (len(names) > 1)}"
        ctx.progress.say(f"{quantizer} leaves {layers} unquantized, whose weights the model's code reads: {short}")


def quantize_experts(
    model: PreTrainedModel,
    ctx: BuildContext,
    *,
    name: str,
    replace: Callable[[nn.Linear], nn.Module],
    ops: Callable[[nn.Module], LinearOps | None],
    skip_modules: Sequence[str] = (),
) -> bool:
    """Quantize the stacked weights of the experts of `model`, whose linear layers are quantized; whether it has any.

    For quantizers that do not use `load_layerwise`, which does it. A stack (E, out, in) becomes one quantized layer for
    each expert; `replace`, `ops` and `skip_modules` as in `load_layerwise`. The weights may be on any device.

    If it returns True, put this into the fingerprint: adapters trained while the experts were dense have another base.
    """
    from smollm3_finetune.api.group_sizes import within
    from smollm3_finetune.api.places import fill, quantized_places

    stacks = {n: s for n, s in stacked_weights(model).items() if not any(within(key, n) for key in skip_modules)}
    places = quantized_places(model, (), stacks, ops, ctx.torch_dtype)
    if places:
        fill(places, replace, ctx.progress, f"quantizing {len(places)} experts with {name}")
    return bool(places)


def stacked_weights(model: nn.Module) -> dict[str, StackedWeight]:
    """Name to stacked weight of experts in a dense model, with its `sizes` (E, out, in) and its `owner`.

    Only in modules that are experts by their class or their place. For quantizers that read a checkpoint of single
    experts: `put(layers, ops, dtype)` replaces the weight by the quantized layers of its experts.
    """
    from smollm3_finetune.api.dense_experts import stacked_weights

    return stacked_weights(model)


def stack_ops_for(module: nn.Module) -> StackOps | None:
    """The operations of a quantized stack of experts, which a module of experts owns; None for any other module.

    stacks = {name: ops for name, module in base.model.named_modules() if (ops := stack_ops_for(module))}
    """
    from smollm3_finetune.api.experts import ExpertStack

    return module if isinstance(module, ExpertStack) else None


def refuse_quantized(quantizer: str, source: ModelSource, hint: str = FULL_PRECISION) -> None:
    """Raises IncompatibleError for a source whose `config.json` says that it is already quantized. Light."""
    stored = source.config.get("quantization_config")
    if stored is not None:
        method = stored.get("quant_method") if isinstance(stored, Mapping) else None
        raise IncompatibleError(
            f"{quantizer} cannot load {source.ref!r}: its weights are already quantized by "
            f"{method or 'another method'}",
            hint=hint,
        )


def group_size_error(
    quantizer: str, group_size: int, what: str, features: Sequence[int], *, option: str = "group_size"
) -> ConfigError:
    """The error for groups that do not divide all of `features`; `what` names the features that they do not divide.

    Its hint suggests a size that fits, or `none`: an `option` of the type `int | None` takes None for whole rows.
    """
    from smollm3_finetune.api.group_sizes import group_size_error

    return group_size_error(quantizer, group_size, what, features, option)


def rounding_dtype(source: ModelSource, ctx: BuildContext, seen_in: str | None = None) -> str | None:
    """The run's dtype if it rounds the checkpoint's values before they are quantized, else None.

    `seen_in` is the dtype to which the method itself casts the values first, if it does (`float32`): a run in that
    dtype or a wider one then changes nothing. Use it as a part of `Base.fingerprint`: if the checkpoint is in
    bfloat16, an adapter trained in bfloat16 then finds the same base in float32.
    """
    own = str(source.config.get("dtype") or source.config.get("torch_dtype") or "float32").removeprefix("torch.")
    exact = EXACT_IN.get(own, frozenset()) | EXACT_IN.get(seen_in or "", frozenset())
    return None if ctx.dtype in exact else ctx.dtype
