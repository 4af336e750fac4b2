"""A small adapted model whose trained parameters have every role, for tests of optimizers."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from smollm3_finetune.api import AdaptedLayers, Base, Role
from smollm3_finetune.testing.small import random_model

RANK = 4
LOW_RANK = ("q_proj", "v_proj", "down_proj")
"""The layers with a low-rank update and a factor for each output; v_proj is not square."""


class EveryRole(AdaptedLayers):
    """Low-rank updates, factors, and some parameters of the base: one trained parameter of each role, or more."""

    def __init__(self, base: Base, dtype: torch.dtype) -> None:
        super().__init__(base)
        self.roles: dict[str, Role] = {}
        generator = torch.Generator().manual_seed(5)
        for name, layer in list(base.model.named_modules()):
            if isinstance(layer, nn.Linear) and name.endswith(LOW_RANK):
                down = 0.1 * torch.randn(RANK, layer.in_features, generator=generator)
                self._add(name, "down", Role.DOWN, down.to(dtype), lambda a, x, y: y)
                up = torch.zeros(layer.out_features, RANK, dtype=dtype)
                self._add(name, "up", Role.UP, up, self._update(layer))
                ones = torch.ones(layer.out_features, dtype=dtype)
                self._add(name, "factor", Role.SCALE, ones, lambda scale, x, y: y * scale.to(y))
            elif name.endswith("o_proj"):
                zeros = torch.zeros(layer.out_features, dtype=dtype)
                self._add(name, "own_bias", Role.BIAS, zeros, lambda bias, x, y: y + bias.to(y))
                other = 0.1 * torch.randn(3, 2, 2, generator=generator)
                self._add(name, "other", Role.OTHER, other.to(dtype), lambda part, x, y: y * (1 + part.sum()).to(y))
        for name, role in (
            ("model.norm.weight", Role.NORM),
            ("model.embed_tokens.weight", Role.EMBEDDING),
            ("model.layers.0.mlp.gate_proj.weight", Role.WEIGHT),
        ):
            base.model.get_parameter(name).requires_grad_(True)
            self.roles[name] = role

    def _add(self, layer: str, name: str, role: Role, value: Tensor, output: Any) -> None:
        self.add(layer, name, nn.Parameter(value), output)
        self.roles[f"{layer}.{name}"] = role

    @staticmethod
    def _update(layer: nn.Module) -> Any:
        def output(up: Tensor, x: Tensor, y: Tensor) -> Tensor:
            return y + ((x.to(up) @ layer.down.T) @ up.T).to(y)

        return output

    def parameter_roles(self) -> Mapping[str, Role]:
        return self.roles


def every_role(dtype: str = "float32") -> EveryRole:
    """A new small SmolLM3 of two layers, the same in each call."""
    kind: torch.dtype = getattr(torch, dtype)
    model = random_model(kind, std=0.1)
    model.requires_grad_(False)
    return EveryRole(Base(model=model, fingerprint="every-role"), kind)


@contextlib.contextmanager
def same_random_numbers(seed: int = 11) -> Iterator[None]:
    """The random numbers of torch are those of `seed` inside the context, and as before after it."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def saved_and_read(state: Mapping[str, Any], directory: Path) -> dict[str, Any]:
    """A state as a checkpoint holds it: written to a file, and read by torch's loader for tensors only."""
    torch.save(dict(state), directory / "optimizer.pt")
    found: dict[str, Any] = torch.load(directory / "optimizer.pt", weights_only=True)
    return found
