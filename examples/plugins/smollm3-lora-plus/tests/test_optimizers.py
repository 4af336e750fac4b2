"""Tests: the promises of every optimizer (conformance kit), and the steps of PEFT's own optimizers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from smollm3_lora_plus.lora_fa import LoraFaMaker
from smollm3_lora_plus.lora_plus import LoraPlusMaker
from smollm3_lora_plus.options import LoraFaOptions, LoraPlusOptions
from torch import nn

from smollm3_finetune.api import IncompatibleError, OptimizerContext, Role, TrainedParameter
from smollm3_finetune.testing import OptimizerConformance

RANK, ALPHA, RATE, DECAY = 4, 8, 1e-3, 0.1


class TestLoraPlus(OptimizerConformance):
    component = "lora-plus"
    adapters = ("lora", "dora")


class TestLoraFa(OptimizerConformance):
    component = "lora-fa"
    adapters = ("lora", "dora")


def peft_model(**options: Any) -> Any:
    """LoRA with random factors on two layers, in float64; the same in each call."""
    peft = pytest.importorskip("peft")
    torch.manual_seed(0)
    inner = nn.Sequential(nn.Linear(12, 20, bias=False), nn.Tanh(), nn.Linear(20, 6))
    config = peft.LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=["0", "2"], init_lora_weights=False, **options)
    return peft.get_peft_model(inner, config).double()


def labeled(model: Any) -> list[TrainedParameter]:
    roles = {"lora_A": Role.DOWN, "lora_B": Role.UP, "lora_magnitude_vector": Role.SCALE}
    return [
        TrainedParameter(
            name=name, parameter=p, role=next((r for part, r in roles.items() if part in name), Role.BIAS),
            layer=name.partition(".lora_")[0], decays="bias" not in name,
        )
        for name, p in model.named_parameters()
        if p.requires_grad
    ]  # fmt: skip


def context() -> OptimizerContext:
    return OptimizerContext(learning_rate=RATE, weight_decay=DECAY, total_steps=9, seed=0, device="cpu")


def check_equal_steps(
    theirs: Callable[[Any], torch.optim.Optimizer], ours: Callable[[Any], torch.optim.Optimizer], **options: Any
) -> None:
    """Six steps with a schedule: the parameters must stay equal to float64's rounding, and move."""
    models = [peft_model(**options), peft_model(**options)]
    start = {n: p.detach().clone() for n, p in models[0].named_parameters()}
    made = [theirs(models[0]), ours(models[1])]
    schedules = [torch.optim.lr_scheduler.LambdaLR(one, lambda step: 1 - step / 9) for one in made]
    for step in range(6):
        torch.manual_seed(step)
        x, y = torch.randn(8, 12, dtype=torch.float64), torch.randn(8, 6, dtype=torch.float64)
        for model, optimizer, schedule in zip(models, made, schedules, strict=True):
            optimizer.zero_grad()
            ((model(x) - y) ** 2).mean().backward()
            optimizer.step()
            schedule.step()
        for (name, one), (_, other) in zip(*(m.named_parameters() for m in models), strict=True):
            torch.testing.assert_close(other, one, rtol=1e-11, atol=1e-13, msg=f"{name} in step {step}")
    moved = {n for n, p in models[1].named_parameters() if not torch.equal(p, start[n])}
    assert any("lora_B" in name for name in moved)


@pytest.mark.parametrize("use_dora", [False, True])
def test_lora_plus_takes_the_steps_of_peft(use_dora: bool) -> None:
    def theirs(model: Any) -> torch.optim.Optimizer:
        from peft.optimizers import create_loraplus_optimizer

        made: torch.optim.Optimizer = create_loraplus_optimizer(
            model, torch.optim.AdamW, lr=RATE, loraplus_lr_ratio=16.0, loraplus_weight_decay=DECAY
        )
        return made

    maker = LoraPlusMaker(LoraPlusOptions(ratio=16.0))
    check_equal_steps(theirs, lambda model: maker.create(labeled(model), context()), use_dora=use_dora)


def test_lora_fa_takes_the_steps_of_peft(monkeypatch: pytest.MonkeyPatch) -> None:
    lorafa = pytest.importorskip("peft.optimizers.lorafa")
    monkeypatch.setattr(lorafa, "is_bf16_available", lambda: False)  # PEFT multiplies in bfloat16 if it can

    def theirs(model: Any) -> torch.optim.Optimizer:
        made: torch.optim.Optimizer = lorafa.create_lorafa_optimizer(model, RANK, ALPHA, RATE, DECAY)
        return made

    maker = LoraFaMaker(LoraFaOptions(scaling=ALPHA / RANK))
    check_equal_steps(theirs, lambda model: maker.create(labeled(model), context()))


def test_lora_fa_moves_the_weight_nearest_to_its_gradient() -> None:
    """Independent reference: the projection of the weight's gradient on the rows of A, by least squares."""
    torch.manual_seed(0)
    a, b = (nn.Parameter(torch.randn(*shape, dtype=torch.float64)) for shape in ((3, 7), (5, 3)))
    of_weight = torch.randn(5, 7, dtype=torch.float64)
    parameters = [
        TrainedParameter(name=role, parameter=p, role=role, layer="x", decays=True)
        for role, p in ((Role.DOWN, a), (Role.UP, b))
    ]
    optimizer: Any = LoraFaMaker(LoraFaOptions(scaling=2.0)).create(parameters, context())
    b.grad = 2.0 * of_weight @ a.detach().T
    nearest = torch.linalg.lstsq(a.detach().T, of_weight.T).solution.T @ a.detach()
    found = 2.0 * optimizer._gradient(b, 2.0) @ a.detach()
    assert (found - nearest).norm() <= 1e-7 * nearest.norm()


def test_lora_fa_refuses_a_layer_without_a_pair() -> None:
    one = TrainedParameter(name="a", parameter=nn.Parameter(torch.zeros(2, 3)), role=Role.DOWN, layer="x", decays=True)
    with pytest.raises(IncompatibleError, match="in the layer x"):
        LoraFaMaker(LoraFaOptions()).create([one], context())
