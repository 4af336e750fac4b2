"""Quantized checkpoints of `hqq`: what `config.json` states, and the tensors of a layer.

Each quantized layer has the packed codes `W_q` in hqq's layout, and `scale` and `zero` in float32. hqq's own state has
more tensors, whose types hqq evaluates as Python code when it reads them; here `config.json` states their values.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from smollm3_finetune.api import (
    Base,
    BuildContext,
    ConfigError,
    IncompatibleError,
    LayerTensors,
    ModelError,
    ModelSource,
    architecture_of,
    check_layerwise,
    given,
    group_size_error,
    layer_shapes,
    layers_to_quantize,
    load_into,
    open_checkpoint,
    ops_for_layers,
    refuse_quantized,
    round_trip_layers,
    write_checkpoint,
)
from smollm3_hqq.options import HQQOptions

if TYPE_CHECKING:
    from torch import Tensor, nn

NAME = "hqq"
LAYOUT = "smollm3-hqq-1"
"""Marks the checkpoints that `write` makes."""
PARTS = ("W_q", "scale", "zero")
OPTIONS = ("bits", "group_size", "axis")
HINT = "use the full-precision checkpoint; checkpoints saved by hqq or transformers cannot be loaded"


def described(config: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The `quantization_config` of a checkpoint that `write` has made; None for any other model. Light."""
    stored = config.get("quantization_config")
    if isinstance(stored, Mapping) and stored.get("quant_method") == NAME and stored.get("layout") == LAYOUT:
        return stored
    return None


def check(options: HQQOptions, source: ModelSource) -> None:
    """Raises an error if the source is quantized otherwise, or contradicts an option that was set. Reads no weights."""
    stored = described(source.config)
    if stored is None:
        check_layerwise(NAME, HINT, along=lambda o: "in_features" if o.axis == 1 else "out_features")(options, source)
        check_skipped(options, source)
        return
    has = stored_options(source, stored)
    wrong = [
        f"{key} is {json.dumps(getattr(options, key))}, but the checkpoint has {json.dumps(getattr(has, key))}"
        for key in OPTIONS
        if key in given(options) and getattr(options, key) != getattr(has, key)
    ]
    if extra := sorted({*options.skip_modules} - {*has.skip_modules}):
        wrong.append(f"skip_modules has {json.dumps(extra[0])}, which the checkpoint does not skip")
    if wrong:
        raise ConfigError(
            f"hqq: {source.ref!r} is already quantized and cannot be quantized again: {'; '.join(wrong)}",
            hint="leave the option out, or use a full-precision checkpoint",
        )


def check_skipped(options: HQQOptions, source: ModelSource) -> None:
    """Raises ConfigError for a name in `skip_modules` that no layer of a checkpoint on disk has."""
    names = [f".{name}." for name in layer_shapes(source) or ()]
    unknown = [key for key in options.skip_modules if not any(f".{key}." in name for name in names)]
    if unknown and names and not any(".experts." in name for name in names):  # experts have other names in a model
        known = ", ".join(sorted({name.split(".")[-2] for name in names}))
        raise ConfigError(
            f"hqq: skip_modules names {unknown[0]!r}, and {source.ref!r} has no linear layer there",
            hint=f"its linear layers are {known}",
        )


def stored_options(source: ModelSource, stored: Mapping[str, Any]) -> HQQOptions:
    """The options that a checkpoint was written with. Raises ModelError if they are not valid."""
    bits, size, axis, skipped = (stored.get(key) for key in (*OPTIONS, "skip_modules"))
    whole = isinstance(size, int) and not isinstance(size, bool) and size > 0
    if bits not in (8, 4, 3, 2) or axis not in (0, 1) or not (size is None or whole):
        raise ModelError(f"hqq cannot load {source.ref!r}: its quantization config has values that hqq does not know")
    if not isinstance(skipped, list) or not all(isinstance(name, str) for name in skipped):
        raise ModelError(f"hqq cannot load {source.ref!r}: skip_modules in its quantization config is not a list")
    return HQQOptions(bits=bits, group_size=size, axis=axis, skip_modules=tuple(skipped))


def quantized_layers(name: str, source: ModelSource, model: Any, options: HQQOptions) -> dict[str, nn.Linear]:
    """The layers of `model` that are quantized. Raises IncompatibleError for a model with experts."""
    layers = layers_to_quantize(model, name, source, options.skip_modules)
    round_trip_layers(model, name, layers)
    return layers


def load_checkpoint(source: ModelSource, ctx: BuildContext, stored: Mapping[str, Any]) -> Base:
    """The frozen model in a checkpoint that `write` has made. Raises ModelError if it is damaged."""
    import torch

    from smollm3_hqq.linear import Linear

    options = stored_options(source, stored)

    def make(name: str, linear: nn.Linear, tensors: LayerTensors) -> nn.Module:
        parts = {part: tensors[part] for part in PARTS}
        if not all(bool(parts[part].isfinite().all()) for part in ("scale", "zero")):
            raise ModelError(f"{source.ref!r}: the quantized layer {name} contains values that are not finite")
        if any(parts[part].dtype != torch.float32 for part in ("scale", "zero")):
            raise ModelError(f"{source.ref!r}: scale and zero of the quantized layer {name} are not in float32")
        try:
            layer = Linear.packed(linear, parts["W_q"], parts["scale"], parts["zero"], options, ctx.device)
        except ValueError as e:
            raise ModelError(f"{source.ref!r}: the quantized layer {name} {e}") from e
        layer.bias = linear.bias
        return layer

    return load_into(
        source, ctx, make, name=NAME, ops=ops_for_layers(Linear, Linear.dequantize, ctx.torch_dtype), identity=(LAYOUT,)
    )


def write(source: ModelSource, out: Path, ctx: BuildContext, options: HQQOptions, check_layer: Any) -> None:
    """Write the checkpoint of a full-precision `source` into `out`: on the grids of `ctx`, else on those of a search.

    Raises IncompatibleError if the source is already quantized, has experts, or is stored under other names than those
    of its architecture; ModelError if a layer has no grid.
    """
    from smollm3_hqq.linear import Linear
    from smollm3_hqq.round_trip import on_grid, searched

    refuse_quantized(NAME, source, HINT)
    model = architecture_of(source)
    if model is None:
        raise IncompatibleError(f"hqq cannot write {source.ref!r}: transformers does not have its architecture")
    layers = quantized_layers(NAME, source, model, options)
    stored = open_checkpoint(source)
    weights = {f"{name}.weight": name for name in layers}
    along = "in_features" if options.axis == 1 else "out_features"
    for name, layer in layers.items():
        check_layer(name, layer)
        if options.group_size is not None and (features := getattr(layer, along)) % options.group_size:
            raise group_size_error(NAME, options.group_size, f"the {features} {along} of {name}", [features])
        if f"{name}.weight" not in stored:
            raise IncompatibleError(
                f"hqq cannot write {source.ref!r}: its checkpoint does not store {name} as a layer of its own",
                hint="load the full-precision checkpoint with --quant hqq",
            )
        if ctx.grids is not None and name not in ctx.grids:
            raise ModelError(f"the run has no grid for the layer {name}", hint="train it again with --ship-as hqq")

    def parts(name: str, weight: Tensor) -> dict[str, Tensor]:
        if ctx.grids is None:
            made = searched(weight, options, ctx.device)
            return {"W_q": made.codes, "scale": made.scale, "zero": made.zero}
        import torch

        scale, zero = (ctx.grids[name][part].to(weight.device) for part in ("scale", "zero"))
        codes = on_grid(weight.to(torch.float32), scale, zero, options, dequantize=False)
        return {"W_q": Linear.pack(codes, options), "scale": scale, "zero": zero}

    def tensors() -> Iterator[tuple[str, Tensor]]:
        with ctx.progress.task(f"quantizing {Path(source.ref).name} with hqq", len(layers)) as task:
            for name, tensor in stored.items():
                if (layer := weights.get(name)) is None:
                    yield name, tensor.to(ctx.torch_dtype) if tensor.is_floating_point() else tensor
                    continue
                for part, value in parts(layer, tensor.to(ctx.torch_dtype)).items():  # rounded as `load` does
                    yield f"{layer}.{part}", value.detach()
                task.advance()

    about = {
        "quant_method": NAME,
        "layout": LAYOUT,
        **{key: getattr(options, key) for key in OPTIONS},
        "skip_modules": sorted(options.skip_modules),
    }
    write_checkpoint(source, out, tensors(), ctx=ctx, quantization=about, dtype=ctx.dtype)
