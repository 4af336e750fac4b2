"""The predicted memory of a run with the optimizer of a plugin."""

from __future__ import annotations

from pathlib import Path

import pytest

from smollm3_finetune.components.discovery import PluginSelection, discover
from smollm3_finetune.config.load import Setting
from smollm3_finetune.memory.estimate import Estimator, estimate
from smollm3_finetune.memory.memory_plan import MemoryPlan
from smollm3_finetune.memory.records import key_of
from smollm3_finetune.progress import Silent
from smollm3_finetune.train.start import PlannedRun, plan_training

FILE = str(Path(__file__).parents[1] / "out_of_tree" / "optimizers.py")


def planned(tmp_path: Path, optimizer: str | None, adapter: str = "lora") -> PlannedRun:
    values = {
        "model": "tiny", "device": "cpu", "output": str(tmp_path / "run"), "quant.name": "none",
        "adapter.name": adapter, "data.max_length": 64, "train.batch_size": 2, "optimizer.name": optimizer,
    }  # fmt: skip
    settings = [Setting(key=tuple(k.split(".")), value=v, origin="test") for k, v in values.items() if v is not None]
    return plan_training(
        settings,
        plugins=(FILE,),
        find_plugins=lambda names: discover(PluginSelection.of(tuple(names))),
        progress=Silent(),
        warn=lambda text: None,
    )


def found(tmp_path: Path, optimizer: str | None, adapter: str = "lora") -> MemoryPlan:
    run = planned(tmp_path, optimizer, adapter)
    return estimate(run.plan, run.registry)


@pytest.mark.long
def test_adamw_of_a_plugin_needs_what_adamw_of_torch_needs(tmp_path: Path) -> None:
    own, usual = found(tmp_path, "plain"), found(tmp_path, None)
    assert own.known
    assert own.parts["optimizer"] == usual.parts["optimizer"]
    assert own.peak == pytest.approx(usual.peak, rel=0.01)
    assert key_of(planned(tmp_path, "plain").plan) != key_of(planned(tmp_path, None).plan)


def test_frozen_parameters_need_no_gradient_and_no_state(tmp_path: Path) -> None:
    run = planned(tmp_path, "freezes-scales", "dora")
    own = Estimator(run.plan, run.registry)
    memory, built = own(), own._built
    assert memory.known
    assert built is not None
    scales = [p for p in built.parameters if p.role == "scale"]
    trained = {id(p): p.numel() * times for p, times in built.trained}
    assert scales
    assert not any(id(p.parameter) in trained or p.parameter.requires_grad for p in scales)
    assert built.gradients == 4 * sum(trained.values())
    assert memory.parts["optimizer"] == pytest.approx(8 * sum(trained.values()), rel=0.01)


def test_the_memory_of_an_optimizer_that_does_not_state_it_is_unknown(tmp_path: Path) -> None:
    assert found(tmp_path, "unknown-memory").unknown == (
        "optimizer 'unknown-memory' does not state the memory of its state",
    )
