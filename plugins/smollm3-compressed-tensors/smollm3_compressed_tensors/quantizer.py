"""Quantizer `compressed-tensors`: loads a checkpoint, or rounds a full-precision model; writes checkpoints."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from smollm3_compressed_tensors.linear import CompressedLinear
from smollm3_compressed_tensors.loading import load_checkpoint
from smollm3_compressed_tensors.options import CompressedTensorsOptions
from smollm3_compressed_tensors.rounding import Rounding
from smollm3_compressed_tensors.scheme import FORMATS, GROUP_SIZES, NAME, described, quantization
from smollm3_finetune.api import (
    Base,
    BuildContext,
    ConfigError,
    IncompatibleError,
    ModelSource,
    RoundTrip,
    StoredTensors,
    architecture_of,
    layers_to_quantize,
    load_layerwise,
    open_checkpoint,
    ops_for_layers,
    options_dict,
    rounding_dtype,
    stacked_weights,
    write_checkpoint,
)

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class CompressedTensorsQuantizer:
    def __init__(self, options: CompressedTensorsOptions) -> None:
        self.options = options

    def load(self, source: ModelSource, ctx: BuildContext) -> Base:
        """Read a checkpoint, or round the layers of a full-precision model as `write` does."""
        stored = described(source)
        if stored is not None:
            return load_checkpoint(source, stored, ctx)
        rounding = self._rounding(source, architecture_of(source))
        options = {**options_dict(self.options), "skip_modules": sorted(self.options.skip_modules)}
        return load_layerwise(
            source,
            ctx,
            name=NAME,
            replace=rounding.layer,
            ops=ops_for_layers(CompressedLinear, CompressedLinear.dense, ctx.torch_dtype),
            identity=(options, rounding.group_size, rounding_dtype(source, ctx, seen_in="float32")),
            skip_modules=self.options.skip_modules,
            group_size=rounding.group_size,
        )

    def write(self, source: ModelSource, out: Path, ctx: BuildContext) -> None:
        """Write the checkpoint. Raises IncompatibleError if a layer of the model is not a matrix in the files."""
        self._refuse_quantized(source)
        model = self._architecture(source)
        rounding, stored = self._rounding(source, model), open_checkpoint(source)
        names = self._stored_layers(source, model, stored)

        def tensors() -> Iterator[tuple[str, Tensor]]:
            for name, tensor in stored.items():
                layer = name.removesuffix(".weight")
                if layer in names and layer != name:
                    yield from ((f"{layer}.{part}", value) for part, value in rounding.tensors(tensor).items())
                else:
                    yield name, tensor

        linear = {name for name, module in model.named_modules() if isinstance(module, nn.Linear)}
        about = quantization(rounding.scheme, rounding.group_size, (linear | set(stored.layers)) - set(names))
        write_checkpoint(source, out, tensors(), ctx=ctx, quantization=about)

    def round_trip(self, source: ModelSource, ctx: BuildContext) -> RoundTrip:
        """What `write` does to the layers of models with the architecture of `source`; it needs no grid."""
        model = self._architecture(source)
        if stacked_weights(model):
            raise IncompatibleError(
                f"{NAME} also quantizes the experts of {source.ref!r}, which training cannot round",
                hint="leave --ship-as out",
            )
        return _RoundTrip(self._rounding(source, model), source, self.options)

    def _architecture(self, source: ModelSource) -> PreTrainedModel:
        model = architecture_of(source)
        if model is None:
            raise IncompatibleError(f"{NAME} writes only models whose code is part of transformers")
        return model

    def _refuse_quantized(self, source: ModelSource) -> None:
        if described(source) is not None:
            raise ConfigError(
                f"{source.ref!r} is already quantized", hint="use the full-precision checkpoint it was made from"
            )

    def _rounding(self, source: ModelSource, model: PreTrainedModel | None) -> Rounding:
        """How layers are rounded. The scales have the dtype of the checkpoint, as merges and `write` keep it."""
        options = self.options
        saved = str(source.config.get("dtype") or source.config.get("torch_dtype")).removeprefix("torch.")
        dtype = getattr(torch, saved) if saved in ("bfloat16", "float16") else torch.float32
        size = options.group_size
        if FORMATS[options.scheme] is None or size == -1:
            return Rounding(options.scheme, None, dtype)
        if size is None:
            if model is None:
                raise ConfigError(f"{NAME} cannot find a group size before loading", hint="--quant-opt group_size=64")
            linear = layers_to_quantize(model, NAME, source, options.skip_modules)
            widths = {layer.in_features for layer in linear.values()}
            widths |= {stack.sizes[2] for stack in stacked_weights(model).values()}
            size = next((n for n in GROUP_SIZES if all(width % n == 0 for width in widths)), None)
        return Rounding(options.scheme, size, dtype)

    def _stored_layers(self, source: ModelSource, model: PreTrainedModel, stored: StoredTensors) -> Collection[str]:
        """The names in the files of the layers to quantize: linear layers, and experts that are stored one by one."""
        linear = layers_to_quantize(model, NAME, source, self.options.skip_modules)
        skipped = [f".{name}." for name in self.options.skip_modules]
        experts = [
            n for n in stored.layers if ".experts." in n and not any(name in f".{n}." for name in skipped)
        ]  # fmt: skip
        missing = [name for name in linear if f"{name}.weight" not in stored]
        if stacked_weights(model) and not experts and not any("experts" in name for name in skipped):
            missing = [*stacked_weights(model)]
        if missing:
            raise IncompatibleError(
                f"{NAME} cannot write {source.ref!r}: its files have no matrix of its own for {missing[0]}",
                hint=f"--quant-opt skip_modules={missing[0].rpartition('.')[2]} leaves it unquantized",
            )
        return {*linear, *experts}


class _RoundTrip:
    def __init__(self, rounding: Rounding, source: ModelSource, options: CompressedTensorsOptions) -> None:
        self._rounding, self._source, self._options = rounding, source, options

    def layers(self, model: PreTrainedModel) -> Collection[str]:
        return list(layers_to_quantize(model, NAME, self._source, self._options.skip_modules))

    def grid(self, layer: str, weight: Tensor) -> Mapping[str, Tensor]:
        return {}

    def apply(self, layer: str, weight: Tensor, grid: Mapping[str, Tensor]) -> Tensor:
        return self._rounding.round(weight).dense()
