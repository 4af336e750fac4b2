"""Layers that an adapter leaves out, and why: found by what the layers do, not by the names of architectures.

A layer is left out if text does not run through it (a vision tower), if its parent reads its weight without calling it
(`nn.MultiheadAttention`), if its forward is not a plain linear map (a router that returns two tensors), or if PEFT
refuses it. An expert that the probe was not routed to is kept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from smollm3_finetune.api import evaluating
from smollm3_peft import peft_patches

UNREACHED = "text does not reach it"
READ = "the model reads the weight without calling the layer"
NOT_LINEAR = "its forward is not a plain linear map"
REFUSED = "PEFT does not support it in this architecture"

_CONTAINERS = (nn.ModuleList, nn.ModuleDict)
"""Modules that are never called themselves."""
_PLAIN = (nn.Linear.forward, Conv1D.forward)


@dataclass(frozen=True, kw_only=True)
class Observed:
    """One forward of a model over a few tokens of text."""

    logits: Tensor
    """(1, T, V)"""
    called: frozenset[str]
    """The names of the modules that were called."""

    def unreached(self, model: nn.Module) -> dict[str, str]:
        """The modules that were not called, each with the outermost module around it that was not called.

        Without the items of a list of which another was called: experts that the tokens were not routed to.
        """
        found: dict[str, str] = {}
        routed: tuple[str, ...] = ()
        for name, module in model.named_modules():
            parent = name.rpartition(".")[0]
            if name in self.called or isinstance(module, _CONTAINERS) or name.startswith(routed or ("\0",)):
                continue
            around = parent
            while around and around not in found and isinstance(model.get_submodule(around), _CONTAINERS):
                around = around.rpartition(".")[0]
            if around in found:
                found[name] = found[around]
            elif self._is_routed(model, parent):
                routed = (*routed, f"{name}.")
            else:
                found[name] = name
        return found

    def _is_routed(self, model: nn.Module, parent: str) -> bool:
        container = model.get_submodule(parent)
        items = (f"{parent}.{child}" for child, _ in container.named_children())
        return isinstance(container, _CONTAINERS) and any(item in self.called for item in items)


def observe(model: PreTrainedModel) -> Observed:
    """Run a few tokens through `model`, and record which modules are called."""
    called: set[str] = set()

    def recorder(name: str) -> Callable[..., None]:
        return lambda *args: called.add(name)

    hooks = [module.register_forward_hook(recorder(name)) for name, module in model.named_modules()]
    try:
        logits = peft_patches.probe(model, int(model.get_input_embeddings().weight.shape[0]))
    finally:
        for hook in hooks:
            hook.remove()
    return Observed(logits=logits, called=frozenset(called))


def is_plain(layer: nn.Module) -> bool:
    """Whether a linear layer computes x Wᵀ + b and nothing else. A subclass with a forward of its own is tried."""
    if type(layer).forward in _PLAIN:
        return True
    weight: Tensor = layer.weight
    if weight.ndim != 2 or not weight.is_floating_point():
        return False
    x = torch.randn(1, 2, weight.shape[1], generator=torch.Generator().manual_seed(0)).to(weight.device, weight.dtype)
    try:
        with evaluating(layer), torch.no_grad():
            found = layer(x)
            expected = F.linear(x, weight, layer.bias)
    except Exception:  # whatever the class does with an input that is not its own
        return False
    if not isinstance(found, Tensor) or found.shape != expected.shape:
        return False
    error = (found.float() - expected.float()).norm()
    return bool(error <= 0.02 * expected.float().norm())


def reasons(
    model: PreTrainedModel, linear: Mapping[str, bool], observed: Observed, method_type: str
) -> dict[str, tuple[str, str]]:
    """The reason for each linear layer that is left out, with the outermost module that it applies to.

    `linear` has the names of the linear layers, and whether each is quantized.
    """
    found: dict[str, tuple[str, str]] = {}
    unreached = observed.unreached(model)
    for name, quantized in linear.items():
        short = name.rpartition(".")[2]
        if name in unreached:
            found[name] = (READ, short) if unreached[name] == name else (UNREACHED, unreached[name])
        elif not quantized and not is_plain(model.get_submodule(name)):
            found[name] = (NOT_LINEAR, short)
        elif peft_patches.refuses(method_type, model, short):
            found[name] = (REFUSED, short)
    return found


def lines(found: Iterable[tuple[str, str]], method: str) -> list[str]:
    """A sentence for each reason and module, with the number of layers."""
    counts: dict[tuple[str, str], int] = {}
    for entry in found:
        counts[entry] = counts.get(entry, 0) + 1
    return [
        f"adapter {method!r} leaves out {count} linear {'layer' if count == 1 else 'layers'} "
        f"{'in' if reason == UNREACHED else 'named'} {where}: {reason}"
        for (reason, where), count in counts.items()
    ]
