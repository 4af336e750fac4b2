"""Tests of a quantizer that provides `Op.SHARDS`: its layers are divided among two processes, and compute the same."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from smollm3_finetune.api import Op
from smollm3_finetune.testing.conformance import demand, fail, plugin_path, skip
from smollm3_finetune.testing.experts import ExpertTests
from smollm3_finetune.testing.small import mixture_source

LARGEST_SHARE = 0.6
"""The part of its quantized layers that one of two processes may hold: half, and small tensors that are not divided."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """What the processes need to load the quantizer of a test."""

    plugins: tuple[str, ...]
    component: str
    options: Mapping[str, Any]
    dtype: str
    source: Path
    cache: Path
    adapts: bool
    """Whether a gradient flows through its layers."""


@dataclass(frozen=True, kw_only=True)
class Sharded:
    """What a process measured."""

    held: int
    """The bytes of quantized layers that the process holds after they were divided."""
    whole: int
    """The bytes of the same layers before."""
    errors: Mapping[str, float]
    """The relative difference from the model that was not divided, by what was computed."""


class ShardTests(ExpertTests):
    """The tests of a quantizer that provides `Op.SHARDS`, on a CPU."""

    def test_layers_are_divided_among_processes_and_compute_the_same(self, tmp_path: Path) -> None:
        if Op.SHARDS not in self.provided():
            skip("shards is not declared")
        if self.device != "cpu":
            skip("two processes on one device are tested on a CPU only")
        self.viewed(tmp_path)  # skips if all layers are ordinary
        self._check_divided(self.source(tmp_path).path, tmp_path)

    def test_experts_are_divided_among_processes_and_compute_the_same(self, tmp_path: Path) -> None:
        if Op.SHARDS not in self.provided():
            skip("shards is not declared")
        if self.device != "cpu":
            skip("two processes on one device are tested on a CPU only")
        self.mixture(tmp_path)  # skips if experts are not quantized
        self._check_divided(mixture_source().path, tmp_path)

    def _check_divided(self, source: Path, tmp_path: Path) -> None:
        from smollm3_finetune.testing.process_pair import process_pair

        request = Request(
            plugins=tuple(str(plugin_path(type(self), p)) for p in self.plugins),
            component=self.component, options=self.options, dtype=self.dtype, source=source,
            cache=tmp_path / "cache", adapts=Op.GRAD_INPUT in self.declared(),
        )  # fmt: skip
        try:
            found = process_pair().call(f"{__name__}:measure", request)
        except RuntimeError as e:
            fail(f"FSDP 2 cannot divide the layers of {self.component}: {str(e).strip().splitlines()[-1]}\n{e}")
        for rank, one in enumerate(found):
            for what, error in one.errors.items():
                demand(
                    error <= self.rounding,
                    f"{what} differ by {error:.2g} in process {rank} once the layers are divided (limit "
                    f"{self.rounding:.2g}): see `FrozenTensor`",
                )
            demand(
                one.held <= LARGEST_SHARE * one.whole,
                f"process {rank} of 2 holds {one.held} of the {one.whole} bytes of the quantized layers, more than "
                f"{LARGEST_SHARE:.0%}: hold their large tensors as `FrozenTensor`",
            )


def measure(request: Request) -> Sharded:
    """Load the base, divide it as accelerate does, and compare it with itself before; runs in each process."""
    import torch
    from torch import nn
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    from smollm3_finetune.api import stack_ops_for, transformer_blocks
    from smollm3_finetune.components.discovery import PluginSelection, discover
    from smollm3_finetune.components.kinds import QUANTIZER
    from smollm3_finetune.components.selection import choose
    from smollm3_finetune.model.compare import apart, cross_entropy, logits
    from smollm3_finetune.model_files.source import DirectorySource
    from smollm3_finetune.testing.parts import context
    from smollm3_finetune.testing.small import token_ids
    from smollm3_finetune.train.distributed.held import held_weights
    from smollm3_finetune.train.distributed.sharding import gathered_weights

    registry = discover(PluginSelection(files=request.plugins))
    chosen = choose(registry, QUANTIZER, request.component, request.options)
    source = DirectorySource(ref=str(request.source), directory=request.source)
    base = chosen.create().load(source, context(request.cache, dtype=request.dtype))
    views = {name: view for name, m in base.model.named_modules() if (view := base.ops_for(m)) is not None}
    stacks = {name: stack for name, m in base.model.named_modules() if (stack := stack_ops_for(m)) is not None}
    layers = nn.ModuleList(base.model.get_submodule(name) for name in (*views, *stacks))
    reads = all(Op.READ_WEIGHT in view.ops for view in views.values())
    ids = token_ids()
    embedded = base.model.get_input_embeddings()(ids).detach()  # (B, T, D)

    def computed() -> dict[str, torch.Tensor]:
        base.model.train()
        found = {"the logits": logits(base.model, ids)}
        if request.adapts:
            inputs = embedded.clone().requires_grad_()
            cross_entropy(base.model(inputs_embeds=inputs, use_cache=False).logits, ids).backward()
            assert inputs.grad is not None
            found["the gradients"] = inputs.grad
            found["the logits after a training step"] = logits(base.model, ids)
        return found

    def weights() -> dict[str, torch.Tensor]:
        if not reads:
            return {}
        found = {f"the weights of {name}": view.read_weight() for name, view in views.items()}
        for name, stack in stacks.items():
            experts = [stack.read_expert(expert) for expert in range(stack.sizes[0])]
            found[f"the weights of {name}"] = torch.stack(experts)
        return found

    whole, right = held_weights(layers).bytes, computed() | weights()
    mesh = init_device_mesh("cpu", (2,))
    for block in transformer_blocks(base.model).values():
        fully_shard(block, mesh=mesh)
    fully_shard(base.model, mesh=mesh)
    held, found = held_weights(layers).bytes, computed()
    repr(base.model)  # libraries show layers between steps, as PEFT does when an adapter is disabled
    for view in views.values():  # core asks these between steps too
        assert view.ops and view.forward_rtol >= 0
    with gathered_weights(base.model, everywhere=True):
        found |= weights()
    return Sharded(held=held, whole=whole, errors={what: apart(found[what], right[what]) for what in right})
