"""Quantized models with adapters, divided among two processes: the losses and gradients of one process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from smollm3_finetune.testing.process_pair import process_pair

AUTOGPTQ = Path(__file__).parents[2] / "plugins" / "smollm3-gptq" / "tests" / "autogptq-0.7.1-4bit-32g"
MODELS = {"gptq": str(AUTOGPTQ)}
"""Quantizer to its model; default: the built-in one."""
CASES: list[tuple[str, dict[str, Any]]] = [
    ("bnb-4bit", {}),
    ("bnb-4bit", {"double_quant": False, "quant_type": "fp4"}),
    ("bnb-8bit", {}),
    ("gptq", {}),
    ("hqq", {}),
    ("hqq", {"bits": 3, "axis": 0, "group_size": 32}),
    ("torchao-int8", {}),
    ("torchao-int8", {"group_size": 32}),
    ("compressed-tensors", {}),
    ("compressed-tensors", {"scheme": "W4A16_ASYM"}),
    ("compressed-tensors", {"scheme": "FP8A16"}),
]
STEPS = 3


def case(quant: str, options: dict[str, Any], adapter: str) -> Any:
    """The first is the shorter test of the others."""
    short = (quant, options, adapter) == ("bnb-4bit", {}, "dora")
    return pytest.param(quant, options, adapter, marks=() if short else pytest.mark.long)


@pytest.mark.plugins
@pytest.mark.parametrize(
    ("quant", "options", "adapter"),
    [case(quant, options, adapter) for quant, options in CASES for adapter in ("lora", "dora")],
)
def test_two_processes_train_as_one_and_each_holds_half(quant: str, options: dict[str, Any], adapter: str) -> None:
    asked = (MODELS.get(quant, "tiny"), quant, options, adapter)
    one, two = (process_pair().call(f"{__file__}:trained", *asked, divide) for divide in (False, True))
    assert one[0]["losses"][-1] < one[0]["losses"][0] - 0.1, "the steps must do something"
    for rank in range(2):
        assert two[rank]["losses"] == pytest.approx(one[0]["losses"], rel=1e-6)
        assert two[rank]["gradients"].keys() == one[0]["gradients"].keys()
        for name, gradient in one[0]["gradients"].items():
            assert float((two[rank]["gradients"][name] - gradient).norm()) <= 1e-6 * float(gradient.norm()), name
        padding = two[rank]["parameters"]  # less than a byte for each of two processes
        assert one[0]["held"] / 2 <= two[rank]["held"] <= one[0]["held"] / 2 + padding


def trained(model: str, quant: str, options: dict[str, Any], adapter: str, divide: bool) -> dict[str, Any]:
    """What a process measures that trains on its row; on the rows of both processes unless `divide`."""
    import torch
    import torch.distributed as dist
    from torch import nn
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    from smollm3_finetune import load_model
    from smollm3_finetune.train.distributed.held import held_weights
    from smollm3_finetune.train.distributed.sharding import whole_tensor

    loaded = load_model(model, quant=quant, quant_options=options, adapter=adapter, purpose="train", dtype="float32")
    generator = torch.Generator().manual_seed(1)
    rows = torch.randint(5, loaded.base.model.config.vocab_size, (2, 24), generator=generator)
    named = {name: p for name, p in loaded.model.named_parameters() if p.requires_grad}
    with torch.no_grad():
        for parameter in named.values():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=generator))
    base = loaded.base.model
    quantized = nn.ModuleList(m for m in base.modules() if loaded.base.ops_for(m) is not None)
    if divide:
        mesh = init_device_mesh("cpu", (2,))
        for layer in base.model.layers:
            fully_shard(layer, mesh=mesh)
        fully_shard(loaded.model, mesh=mesh)
    held = held_weights(quantized).bytes
    mine = [dist.get_rank()] if divide else [0, 1]
    losses, gradients = [], {}
    named = {name: p for name, p in loaded.model.named_parameters() if p.requires_grad}
    optimizer = torch.optim.SGD(named.values(), lr=0.05)
    for _ in range(STEPS):
        loss = torch.stack(
            [loaded.model(input_ids=rows[r, None], labels=rows[r, None], use_cache=False).loss for r in mine]
        ).mean()
        loss.backward()
        shared = loss.detach().clone()
        dist.all_reduce(shared)
        losses.append(shared.item() / 2)
        if not gradients:
            found = {name: p.grad for name, p in named.items()}
            gradients = {n: (whole_tensor(g) if divide else g).detach().clone() for n, g in found.items()}
        optimizer.step()
        optimizer.zero_grad()
    return {"losses": losses, "gradients": gradients, "held": held, "parameters": len(list(quantized.parameters()))}
