"""Load a quantized checkpoint into layers of a plugin: see `smollm3_finetune.api.load_into`. Imports torch.

transformers builds the model without weights. Its quantized layers are replaced by empty modules, and transformers
loads all other weights as it does for any checkpoint: renamed, fused, tied. Then the quantized layers are read.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from smollm3_finetune.api.dense_experts import StackedWeight, stacked_weights
from smollm3_finetune.api.joined import JoinedLinear, ops_with_joined
from smollm3_finetune.api.models import Base, BuildContext, LinearOps, ModelSource
from smollm3_finetune.api.placing import linear_shapes, place
from smollm3_finetune.api.replaceable import weights_that_are_read
from smollm3_finetune.cache.fingerprint import fingerprint
from smollm3_finetune.errors import IncompatibleError, ModelError
from smollm3_finetune.model_files.headers import FLOATS
from smollm3_finetune.model_files.loading import Preparation, prepared
from smollm3_finetune.model_files.stored import LayerTensors, StoredTensors

if TYPE_CHECKING:
    from transformers import PreTrainedModel

PLAIN = frozenset({"weight", "bias"})
NAMED = 5
"""The number of tensors that an error names."""

MakeLayer = Callable[[str, nn.Linear, LayerTensors], nn.Module]
ShapeOf = Callable[[LayerTensors], tuple[int, int]]


@dataclass(frozen=True, kw_only=True)
class _Layer:
    """A linear layer of the model, or an expert, that the checkpoint has as quantized layers."""

    shape: tuple[int, int]
    parts: tuple[str, ...]
    """Their names in the checkpoint; more than one if the layer is fused."""
    own_bias: bool
    """Whether transformers loads the bias, as that of an ordinary layer."""


def load_into(
    source: ModelSource,
    ctx: BuildContext,
    make_layer: MakeLayer,
    *,
    name: str,
    ops: Callable[[nn.Module], LinearOps | None],
    identity: Sequence[Any],
    shape_of: ShapeOf | None,
    ignore: Sequence[str],
) -> Base:
    """See `smollm3_finetune.api.load_into`."""
    filling = _Filling(source, ctx, StoredTensors(source.path), shape_of, ignore)
    preparation = Preparation(filling.take_places)
    with prepared(preparation):
        model = source.load(dtype=ctx.torch_dtype, device_map={"": ctx.device})
    if preparation.unexpected is None:
        raise IncompatibleError(
            f"{name} cannot load {source.ref!r}: its loader reads the weights itself",
            hint="use another --loader; loaders return directory_source(…), or call its load",
        )
    filling.refuse_others(preparation.unexpected)
    filling.fill(model, make_layer, ops, name)
    model.requires_grad_(False)
    return Base(model=model, fingerprint=fingerprint(name, source.fingerprint, *identity), ops_for=ops_with_joined(ops))


class _Filling:
    def __init__(
        self,
        source: ModelSource,
        ctx: BuildContext,
        stored: StoredTensors,
        shape_of: ShapeOf | None,
        ignore: Sequence[str],
    ) -> None:
        self.source, self.ctx, self.stored, self.shape_of = source, ctx, stored, shape_of
        self.names = [n for n in stored if not any(fnmatch.fnmatchcase(n, pattern) for pattern in ignore)]
        self.layers: dict[str, _Layer] = {}
        self.stacks: list[tuple[StackedWeight, list[str]]] = []
        """Stacked weights of experts, with the names of their quantized layers in `layers`."""
        self.leaves: dict[str, list[str]] = {}
        """Quantized layer of the checkpoint to the rest of the names of its tensors."""
        self.others: list[tuple[str, str]] = []
        """The tensors that transformers reads, with the names that it gives them."""

    # ------------------------------------------------------------------------- before weights are read

    def take_places(self, model: PreTrainedModel) -> None:
        """Replace the layers of the model (on the meta device) that the checkpoint has quantized by empty modules."""
        linear = linear_shapes(model)
        stacked = {n: weight for n, weight in stacked_weights(model).items() if not weight.interleaved}
        rename = _renaming(model)
        quantized = self._quantized(set(linear), {n for n, _ in model.named_modules()}, rename)
        shapes = {known: self._shape(layer) for known, layer in quantized.items()}
        try:
            placed = place(shapes, linear, {n: weight.sizes for n, weight in stacked.items()})
        except ModelError as e:
            raise ModelError(f"{self.source.ref!r} does not fit its architecture: {e.message}", hint=e.hint) from None
        if not placed:
            raise ModelError(
                f"{self.source.ref!r} has no quantized layer", hint="leave --quant out to load it as it is"
            )
        self._refuse(model, placed)
        for key, weight in stacked.items():
            experts, out, inputs = weight.sizes
            names = [f"{key}.{expert}" for expert in range(experts)]
            if names[0] in placed:
                for name in names:
                    self._take(name, (out, inputs), placed.pop(name), quantized, biased=False)
                self.stacks.append((weight, names))
                delattr(weight.owner, weight.name)
                setattr(weight.owner, weight.name, _initialized())
        for name, parts in placed.items():
            bias = getattr(model.get_submodule(name), "bias", None)
            self._take(name, linear[name], parts, quantized, biased=bias is not None)
            empty = nn.Module()
            empty.register_parameter("bias", bias if self.layers[name].own_bias else None)
            empty.weight = _initialized()
            model.set_submodule(name, empty)
        mine = {f"{layer}.{leaf}" for layer, leaves in self.leaves.items() for leaf in leaves}
        rename = _renaming(model)
        self.others = [(n, rename(n, convert=True)) for n in self.names if n not in mine]

    def _quantized(self, linear: set[str], modules: set[str], rename: Callable[[str], str]) -> dict[str, str]:
        """Name in the model to name in the checkpoint of the layers that do not have just a weight and a bias.

        A name that is not a module of the model may be a part of a fused layer, or an expert.
        """
        known: dict[str, str] = {}

        def in_model(layer: str) -> str:
            if layer not in known:
                known[layer] = rename(f"{layer}.weight").removesuffix(".weight")
            return known[layer]

        for name in self.names:
            layer, _, _ = name.rpartition(".")
            owner = layer
            while owner and in_model(owner) not in linear:
                owner = owner.rpartition(".")[0]
            owner = owner or layer
            if owner and (in_model(owner) in linear or in_model(owner) not in modules):
                self.leaves.setdefault(owner, []).append(name.removeprefix(f"{owner}."))
        self.leaves = {layer: leaves for layer, leaves in self.leaves.items() if self._is_quantized(layer, leaves)}
        return {in_model(layer): layer for layer in self.leaves}

    def _is_quantized(self, layer: str, leaves: Iterable[str]) -> bool:
        if set(leaves) - PLAIN:
            return True
        weight = self.stored.headers.get(f"{layer}.weight")
        return weight is not None and weight.dtype not in FLOATS

    def _shape(self, layer: str) -> tuple[int, int] | None:
        return None if self.shape_of is None else self.shape_of(LayerTensors(self.stored, layer, self.leaves[layer]))

    def _refuse(self, model: PreTrainedModel, placed: Mapping[str, tuple[str, ...]]) -> None:
        """Raise an error for a layer that cannot be replaced in this model."""
        tied: Mapping[str, str] = getattr(model, "all_tied_weights_keys", None) or {}
        if shared := sorted(n for n in placed if f"{n}.weight" in tied):
            raise ModelError(
                f"{self.source.ref!r} has a quantized layer {shared[0]!r}, but its config.json ties the weight of this "
                f"layer to {tied[f'{shared[0]}.weight']!r}"
            )
        if read := sorted(set(weights_that_are_read(model)) & set(placed)):
            raise IncompatibleError(
                f"{self.source.ref!r} has a quantized layer {read[0]!r}, but the code of {type(model).__name__} reads "
                "its weight without calling the layer",
                hint="use a checkpoint in which this layer is not quantized",
            )

    def _take(
        self, name: str, shape: tuple[int, int], known: tuple[str, ...], quantized: Mapping[str, str], *, biased: bool
    ) -> None:
        parts = tuple(quantized[part] for part in known)
        own_bias = biased and len(parts) == 1
        if own_bias:
            self.leaves[parts[0]] = [leaf for leaf in self.leaves[parts[0]] if leaf != "bias"]
        self.layers[name] = _Layer(shape=shape, parts=parts, own_bias=own_bias)

    # -------------------------------------------------------------------------- after weights were read

    def refuse_others(self, unexpected: frozenset[str]) -> None:
        """Raise ModelError for tensors that transformers has no place for."""
        if extra := [name for name, renamed in self.others if renamed in unexpected]:
            raise ModelError(
                f"{self.source.ref!r} has tensors that its architecture has no place for: {_named(extra)}",
                hint="check that config.json and the weight files belong together",
            )

    def fill(
        self,
        model: PreTrainedModel,
        make_layer: MakeLayer,
        ops: Callable[[nn.Module], LinearOps | None],
        title: str,
    ) -> None:
        """Put the quantized layers into the model, one by one."""
        experts = {name: None for _, names in self.stacks for name in names}
        made: dict[str, nn.Module] = {}
        with self.ctx.progress.task(f"reading {len(self.layers)} layers of {title}", total=len(self.layers)) as task:
            for name, layer in self.layers.items():
                if name in experts:
                    made[name] = self._layer(name, layer, None, make_layer)
                else:
                    bias = model.get_submodule(name).bias
                    model.set_submodule(name, self._layer(name, layer, bias, make_layer))
                task.advance()
        for weight, names in self.stacks:
            weight.put([made[name] for name in names], ops_with_joined(ops), self.ctx.torch_dtype)

    def _layer(self, name: str, layer: _Layer, bias: Any, make_layer: MakeLayer) -> nn.Module:
        out, inputs = layer.shape
        if len(layer.parts) == 1:
            return self._part(name, layer.parts[0], (out, inputs), bias, make_layer)
        sizes = self._split(name, layer)
        parts, biases = [], []
        for part, size in zip(layer.parts, sizes, strict=True):
            leaves = self.leaves[part]
            stored = self.stored[f"{part}.bias"] if "bias" in leaves else None
            biases.append(stored)
            self.leaves[part] = [leaf for leaf in leaves if leaf != "bias"]
            parts.append(self._part(part, part, (size, inputs), None, make_layer))
        return JoinedLinear(parts, inputs, out, self._joined_bias(biases, sizes))

    def _split(self, name: str, layer: _Layer) -> list[int]:
        """The output features of the parts of a fused layer."""
        shapes = [self._shape(part) for part in layer.parts]
        if all(shape is not None for shape in shapes):
            return [shape[0] for shape in shapes if shape is not None]
        count = len(layer.parts)
        if layer.shape[0] % count:
            raise ModelError(
                f"{self.source.ref!r}: the {layer.shape[0]} outputs of {name} cannot be divided among {count} parts"
            )
        return [layer.shape[0] // count] * count

    def _part(self, name: str, stored: str, shape: tuple[int, int], bias: Any, make_layer: MakeLayer) -> nn.Module:
        out, inputs = shape
        dense = nn.Linear(inputs, out, bias=False, device="meta", dtype=self.ctx.torch_dtype)
        dense.bias = bias
        dense.requires_grad_(False)
        tensors = LayerTensors(self.stored, stored, self.leaves[stored])
        try:
            made = make_layer(name, dense, tensors)
        except ModelError as e:
            raise ModelError(f"{self.source.ref!r}: {stored}: {e.message}", hint=e.hint) from e
        if unread := [f"{stored}.{leaf}" for leaf in tensors if leaf not in tensors.read]:
            raise ModelError(f"{self.source.ref!r} has tensors of a layer that are not read: {_named(unread)}")
        found = getattr(made, "out_features", out), getattr(made, "in_features", inputs)
        if found != (out, inputs):
            raise ModelError(
                f"{self.source.ref!r}: the quantized layer {stored!r} has the shape {found}, but the architecture has "
                f"{(out, inputs)}"
            )
        return made.to(self.ctx.device)

    def _joined_bias(self, biases: Sequence[Tensor | None], sizes: Sequence[int]) -> Tensor | None:
        """The bias of a fused layer; a part without a bias has zeros. None if no part has one."""
        if all(bias is None or not bias.any() for bias in biases):
            return None
        whole = [torch.zeros(n) if b is None else b for b, n in zip(biases, sizes, strict=True)]
        return torch.cat([b.to(self.ctx.torch_dtype) for b in whole]).to(self.ctx.device)


def _renaming(model: PreTrainedModel) -> Callable[..., str]:
    """A function that renames a tensor of a checkpoint as transformers does; `convert`: also as its converters do."""
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

    mapping = get_model_conversion_mapping(model)
    renamings = [entry for entry in mapping if isinstance(entry, WeightRenaming)]
    converters = [entry for entry in mapping if isinstance(entry, WeightConverter)]
    state = model.state_dict()
    prefix = model.base_model_prefix

    def rename(name: str, *, convert: bool = False) -> str:
        renamed: str = rename_source_key(name, renamings, converters if convert else [], prefix, state)[0]
        if renamed not in state and name in state:
            renamed = rename_source_key(name, [], [], prefix, state)[0]
        return renamed

    return rename


def _initialized() -> Tensor:
    """The weight of an empty module while transformers loads: some `_init_weights` set those of other layers."""
    weight = torch.empty(0)
    weight._is_hf_initialized = True
    return weight


def _named(names: Sequence[str]) -> str:
    more = len(names) - NAMED
    return ", ".join(names[:NAMED]) + (f" and {more} more" if more > 0 else "")
