"""The command that trains a run again for a format is offered only where it works."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from shipped_models import PLUGIN, trained

from smollm3_finetune.api import Purpose
from smollm3_finetune.components.discovery import PluginSelection, discover
from smollm3_finetune.components.kinds import ADAPTER, QUANTIZER
from smollm3_finetune.components.selection import choose
from smollm3_finetune.merge.remedy import ship_as_command
from smollm3_finetune.model.load import build_context
from smollm3_finetune.model.new_tokens import NewToken
from smollm3_finetune.model.plan import ModelPlan, ModelRequest, plan_model, select_model
from smollm3_finetune.progress import Silent
from smollm3_finetune.testing.small import small_model_directory

pytest.importorskip("peft")


def planned(run: Path, inside: str, ship_as: Any) -> ModelPlan:
    trained(ship_as, noise=False).save(run / inside)
    (run / "run.yaml").touch()
    registry = discover(PluginSelection(files=(PLUGIN,)))
    ref = str(small_model_directory(biases=False))
    selected = select_model(registry, ModelRequest(ref=ref, adapter_path=run / inside, purpose=Purpose.MERGE))
    return plan_model(registry, selected, build_context(Purpose.MERGE, "cpu", "float32", 0, progress=Silent()))


def command(plan: ModelPlan, **options: Any) -> str | None:
    registry = discover(PluginSelection(files=(PLUGIN,)))
    return ship_as_command(plan, choose(registry, QUANTIZER, options.pop("name", "grid-file"), options))


@pytest.mark.parametrize("inside", ["adapter", "checkpoints/checkpoint-4"])
def test_the_run_is_found_from_its_adapter_and_its_checkpoints(inside: str, tmp_path: Path) -> None:
    plan = planned(tmp_path, inside, None)
    start = f"smollm3 train --config {tmp_path / 'run.yaml'} --ship-as grid-file"
    assert command(plan) == start
    assert command(plan, bits=3) == f"{start} --ship-as-opt bits=3"
    assert command(plan, name="no-trip") is None
    assert command(replace(plan, new_tokens=(NewToken(text="<a>", id=9, pieces=(8,)),))) is None
    (tmp_path / "run.yaml").unlink()
    assert command(plan) is None


def test_a_run_that_was_trained_so_already_is_not_offered_it_again(tmp_path: Path) -> None:
    plan = planned(tmp_path, "adapter", {"name": "grid-file", "bits": 3})
    assert command(plan, bits=3) is None
    assert (command(plan) or "").endswith("--ship-as grid-file --ship-as-opt bits=4")


def test_an_adapter_that_cannot_be_trained_so_is_not_offered_it(tmp_path: Path) -> None:
    plan = planned(tmp_path, "adapter", None)
    full = choose(discover(PluginSelection()), ADAPTER, "full", {})
    assert command(replace(plan, adapter=full)) is None
