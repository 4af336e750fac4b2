"""For adapters that change what layers compute: find the layers, change their outputs, save and restore.

Import everything from `smollm3_finetune.api`. torch and transformers are imported when a function is called.

    class ScaleAdapter:
        def attach(self, base, ctx, total_steps):
            adapted = AdaptedLayers(base)
            for name, layer in layers_to_adapt(base, ("o_proj",)).items():
                scale = torch.nn.Parameter(torch.ones(layer.out_features, dtype=ctx.trained_dtype, device=ctx.device))
                adapted.add(name, "output_scale", scale, lambda scale, x, y: y * scale.to(y))
            return adapted

        def restore(self, base, path, ctx, total_steps):
            return self.attach(base, ctx, total_steps).restored(path, ctx)
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from smollm3_finetune.api.capabilities import Purpose
from smollm3_finetune.api.models import Base, BuildContext, LinearOps
from smollm3_finetune.api.parameters import restore_parameters, save_parameters
from smollm3_finetune.api.shipping import MergedLayer, computes_shipped
from smollm3_finetune.errors import ConfigError, IncompatibleError, UnsupportedOp

if TYPE_CHECKING:
    from torch import Tensor, nn


@dataclass(frozen=True)
class LayerToAdapt:
    """A linear layer of a base: it computes x @ W.T, plus its bias if it has one."""

    module: Any
    """The layer, an `nn.Module`; its class depends on the quantizer."""
    out_features: int
    """The number of its outputs: the last dimension of the tensor that it returns."""
    in_features: int
    """The number of its inputs: the last dimension of the tensor that it receives."""
    ops: LinearOps | None
    """The operations of a quantized layer; None for an ordinary one, with `module.weight` (out, in)."""


def layers_to_adapt(base: Base, endings: Sequence[str] = (), *, option: str = "") -> dict[str, LayerToAdapt]:
    """Name to layer: the linear layers of `base`, quantized or not, whose name ends with one of `endings`.

    In the order of the model. Without `endings`, these are all linear layers except the output head; the head is
    included only if an ending names it. Layers whose weight the model's code reads without calling them, as Mamba does,
    are left out: what an adapter adds to their output would have no effect.

    `option` is the name of the adapter's option that sets `endings`, for the hint. Raises ConfigError if an ending fits
    no layer, and IncompatibleError if the model has no linear layer.
    """
    from smollm3_finetune.api.replaceable import is_plain_linear, weights_that_are_read

    head: Any = getattr(base.model, "get_output_embeddings", lambda: None)()
    read = set(weights_that_are_read(base.model))
    found: dict[str, LayerToAdapt] = {}
    for name, module in base.model.named_modules():
        ops = base.ops_for(module)
        if name in read or (ops is None and not is_plain_linear(module)):
            continue
        out_features, in_features = module.weight.shape if ops is None else ops.shape
        found[name] = LayerToAdapt(module, int(out_features), int(in_features), ops)
    if not found:
        raise IncompatibleError(f"{type(base.model).__name__} has no linear layer that an adapter can change")
    for ending in endings:
        if not any(name.endswith(ending) for name in found):
            names = sorted({name.rpartition(".")[2] for name in found})
            raise ConfigError(
                f"no linear layer's name ends with {ending!r}",
                hint=f"--adapter-opt {option}={names[0]}" if option else f"its linear layers are {', '.join(names)}",
            )
    if not endings:
        return {name: layer for name, layer in found.items() if layer.module is not head}
    return {name: layer for name, layer in found.items() if name.endswith(tuple(endings))}


def transformer_blocks(model: nn.Module) -> dict[str, nn.Module]:
    """Name to module: the blocks of a decoder, in the order in which they are computed: `model.layers.0`, …

    They are the elements of one `nn.ModuleList`: of those that are in no other list, the one with as many elements as
    the model's config has layers, otherwise the one with the most parameters. In a model with several parts, they are
    those of its text decoder. Raises IncompatibleError if the model has no such list.
    """
    from torch import nn

    def lists_in(part: nn.Module) -> dict[str, nn.ModuleList]:
        found = {n: m for n, m in part.named_modules() if isinstance(m, nn.ModuleList) and len(m)}
        return {n: m for n, m in found.items() if not any(n.startswith(f"{outer}.") for outer in found)}

    decoder = _decoder(model)
    lists = lists_in(decoder) or lists_in(model)  # some models call their head the decoder
    layers = getattr(getattr(decoder, "config", None), "num_hidden_layers", None)

    def rank(blocks: nn.ModuleList) -> tuple[bool, int]:
        return len(blocks) == layers, sum(p.numel() for p in blocks.parameters())

    chosen = max(lists, key=lambda name: rank(lists[name]), default=None)
    if chosen is None or any(_beside(name, chosen) and len(lists[name]) == len(lists[chosen]) for name in lists):
        # XLM keeps attentions, norms and feed-forward layers in a list each
        raise IncompatibleError(f"{type(model).__name__} has no list of transformer blocks")
    own = set(lists[chosen])
    return {name: module for name, module in model.named_modules() if module in own}


def _beside(name: str, other: str) -> bool:
    return name != other and name.rpartition(".")[0] == other.rpartition(".")[0]


def _decoder(model: Any) -> Any:
    """The part of a model that reads and predicts text."""
    get_decoder = getattr(model, "get_decoder", None)
    try:
        decoder = get_decoder() if get_decoder is not None else None
    except (AttributeError, NotImplementedError):
        return model
    return model if decoder is None else decoder


class AdaptedLayers:
    """An `Adapted` for adapters that change the outputs of layers: `add` the parts, and it does the rest.

    A part is a module or a parameter. It is registered on its layer, so it moves, is trained and is sharded with the
    model, and its name begins with the name of the layer. `disabled` may be nested, and holds under `torch.compile` and
    gradient checkpointing. A method with more state or with a schedule is a subclass, which extends `tensors` and
    overrides `on_step`.
    """

    FILE = "adapter.safetensors"
    """The name of the file that `save` writes."""

    def __init__(self, base: Base) -> None:
        self.base = base
        self.model: Any = base.model
        self.enabled = True
        """Whether the parts change outputs: False inside `disabled`."""
        self._places: dict[str, tuple[nn.Module, str]] = {}
        self._merged: dict[str, list[tuple[str, Callable[[Any, Tensor], Tensor] | None]]] = {}

    def add(
        self,
        layer: str,
        name: str,
        part: nn.Module | nn.Parameter,
        output: Callable[[Any, Tensor, Tensor], Tensor],
        *,
        merged: Callable[[Any, Tensor], Tensor] | None = None,
    ) -> None:
        """Register `part` as the attribute `name` of the layer `layer`, which then returns `output(part, x, y)`.

        `x` (…, in) is the layer's input and `y` (…, out) its output, in the dtype of the run; `part` may have another:
        cast `x`, and return a tensor with the shape and dtype of `y`. Parts of one layer are applied in the order in
        which they were added. Raises ValueError if the layer already has an attribute `name`.

        `merged(part, weight)` returns the layer's weight (out, in) with the part merged into it, in the dtype of
        `weight`, differentiable in the part: bit for bit what `Adapter.merge` writes. An adapter that passes it for
        each part may declare `ships`, see `merged_layers`.
        """
        from torch import nn

        module = self.model.get_submodule(layer)
        if hasattr(module, name):
            raise ValueError(f"the layer {layer} already has an attribute {name!r}: choose another name for the part")
        if isinstance(part, nn.Module):
            module.add_module(name, part)
        else:
            module.register_parameter(name, part)
        self._places[f"{layer}.{name}"] = (module, name)
        self._merged.setdefault(layer, []).append((name, merged))

        def hook(module: nn.Module, args: tuple[Any, ...], y: Tensor) -> Tensor:
            # the part is looked up in each call: sharding replaces parameters
            return output(getattr(module, name), args[0], y) if self.enabled and not computes_shipped(module) else y

        module.register_forward_hook(hook)

    @property
    def parts(self) -> dict[str, Any]:
        """`LAYER.NAME` to part, in the order in which they were added."""
        return {key: getattr(module, name) for key, (module, name) in self._places.items()}

    def merged_layers(self) -> dict[str, MergedLayer]:
        """The layers with parts, for `train.ship_as`; see `MergingAdapted`.

        Raises UnsupportedOp if a part was added without `merged`.
        """
        found: dict[str, MergedLayer] = {}
        for layer, parts in self._merged.items():
            module = self.model.get_submodule(layer)
            for name, merged in parts:
                if merged is None:
                    raise UnsupportedOp(
                        f"the part {name!r} of {layer} was added without `merged`, so its merged weight is not known"
                    )
            found[layer] = MergedLayer(module=module, base=module, merged=partial(self._merge, module, parts))
        return found

    @staticmethod
    def _merge(
        module: nn.Module, parts: Sequence[tuple[str, Callable[[Any, Tensor], Tensor] | None]], weight: Tensor
    ) -> Tensor:
        for name, merged in parts:
            assert merged is not None
            weight = merged(getattr(module, name), weight)
        return weight

    def tensors(self) -> dict[str, Tensor]:
        """What `save` writes and `restored` reads, by name: parameters and persistent buffers of the parts.

        A subclass adds the tensors of its own state. `restored` copies into them in place.
        """
        from torch import nn

        found: dict[str, Tensor] = {}
        for key, part in self.parts.items():
            if isinstance(part, nn.Module):
                part.state_dict(destination=found, prefix=f"{key}.", keep_vars=True)
            else:
                found[key] = part
        return found

    @contextlib.contextmanager
    def disabled(self) -> Iterator[None]:
        """Inside the context, the layers return their own outputs.

        With gradients enabled, activations are not checkpointed inside: the backward pass would compute them again
        outside of the context, with the adapter.
        """
        import torch

        before, self.enabled = self.enabled, False
        modules = self.model.modules() if torch.is_grad_enabled() else ()
        checkpointed = [m for m in modules if getattr(m, "gradient_checkpointing", False)]
        try:
            for module in checkpointed:
                module.gradient_checkpointing = False
            yield
        finally:
            for module in checkpointed:
                module.gradient_checkpointing = True
            self.enabled = before

    def on_step(self, step: int) -> None:
        """Do nothing: a method with a schedule overrides it."""

    def save(self, path: Path) -> None:
        """Write `tensors()` to the file `FILE` in the directory `path`."""
        save_parameters(path / self.FILE, self.tensors())

    def restored(self, path: Path, ctx: BuildContext) -> Self:
        """Copy what `save` wrote in the directory `path` into `tensors()`, for `Adapter.restore`; returns self.

        The parameters are frozen unless `ctx.purpose` is `Purpose.TRAIN`. Raises what `restore_parameters` raises.
        """
        from torch import nn

        restore_parameters(path / self.FILE, self.tensors())
        if ctx.purpose is not Purpose.TRAIN:
            for tensor in self.tensors().values():
                if isinstance(tensor, nn.Parameter):
                    tensor.requires_grad_(False)
        return self
