"""Values of a reference that are computed in each step, on the batch of the step."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from toy_runs import Run, assert_same_run, losses

from smollm3_finetune import load_model
from smollm3_finetune.errors import ModelError
from smollm3_finetune.reference.start_file import write_start


def margins(toy: ModuleType) -> list[torch.Tensor]:
    """The margins of each training batch."""
    return [margin for training, margin, _ in toy.seen if training]


@pytest.mark.parametrize("reference", ["base", pytest.param("start", marks=pytest.mark.long)])
def test_the_margin_of_a_fresh_adapter_is_zero_and_grows(run: Run, toy: ModuleType, reference: str) -> None:
    report = run("run", reference=reference)
    assert float(margins(toy)[0].abs().max()) == 0.0
    assert losses("run")[0] == pytest.approx(math.log(2), abs=1e-6)
    assert float(margins(toy)[-1].abs().min()) > 1e-3
    assert report["before"]["held_out_loss"] == pytest.approx(math.log(2), abs=1e-7)
    assert report["after"]["held_out_loss"] < report["before"]["held_out_loss"]
    assert not Path("run/start").exists(), "the start of a fresh adapter is the base"


def test_the_start_of_full_fine_tuning_is_the_base_model(run: Run, toy: ModuleType) -> None:
    report = run("run", "full", reference="start", learning_rate=1e-3, max_steps=2)
    assert float(margins(toy)[0].abs().max()) == 0.0
    assert float(margins(toy)[-1].abs().min()) > 1e-3
    pristine = load_model("tiny", device="cpu").model
    start = load_file("run/start/trained.safetensors")
    named = dict(pristine.named_parameters())
    assert start.keys() == named.keys() and all(torch.equal(start[n], p) for n, p in named.items())
    assert report["reference"] == {"kind": "start", "computed": "each-step"}
    assert "| reference of the loss | the model before the first step |" in Path("run/adapter/README.md").read_text()


def test_every_batch_has_the_reference_of_its_own_pairs(run: Run, toy: ModuleType, monkeypatch: Any) -> None:
    """After the weights moved, the reference is what the base computes on the same batch."""
    own = toy.Pairs.row_losses
    pristine = load_model("tiny", device="cpu").model.eval()

    def checked(self: Any, model: Any, batch: Any) -> Any:
        with torch.no_grad():
            rows = toy.row_logps(pristine, batch).view(-1, 2)
        found = torch.stack([values["logps"] for values in batch["reference"]])
        torch.testing.assert_close(found, rows, rtol=1e-4, atol=1e-4)
        return own(self, model, batch)

    monkeypatch.setattr(toy.Pairs, "row_losses", checked)
    run("run", padding="always", gradient_accumulation=2, eval_every=2)
    assert len(margins(toy)) > 6


LONG = [pytest.mark.plugins, pytest.mark.long]


@pytest.mark.parametrize(
    ("adapter", "reference"),
    [
        pytest.param("scale", "base", id="base", marks=pytest.mark.long),
        pytest.param("full", "start", id="start"),
        pytest.param({"name": "lora", "dropout": 0.2}, "base", id="lora", marks=LONG),
        pytest.param({"name": "lora", "init": "pissa"}, "start", id="pissa", marks=LONG),
    ],
)
def test_a_run_that_was_killed_and_resumed_is_the_same(run: Run, toy: ModuleType, adapter: Any, reference: str) -> None:
    settings = {"reference": reference, "save_every": 2, "gradient_accumulation": 2}
    run("whole", adapter, **settings)
    toy.seen.clear()
    toy.stop_before[0] = 6  # after the checkpoint of step 2
    with pytest.raises(Exception, match="killed"):
        run("killed", adapter, **settings)
    toy.stop_before[0] = None
    run("killed", resume=True)
    assert_same_run("whole", "killed")
    before, after = (json.loads(Path(name, "report.json").read_text()) for name in ("whole", "killed"))
    assert before["after"]["held_out_loss"] == after["after"]["held_out_loss"]


def test_a_resumed_run_refuses_a_start_that_is_not_its_own(run: Run, toy: ModuleType) -> None:
    toy.stop_before[0] = 3
    with pytest.raises(Exception, match="killed"):
        run("run", "full", reference="start", save_every=1)
    toy.stop_before[0] = None
    file = Path("run/start/trained.safetensors")
    content = file.read_bytes()

    def refused(ending: str) -> None:
        with pytest.raises(ModelError) as error:
            run("run", resume=True)
        assert error.value.message.startswith("the reference of the run, its weights before the first step (")
        assert error.value.message.endswith(ending) and "\n" not in error.value.message
        assert error.value.hint == "start a new run: smollm3 train --config run/run.yaml"

    file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    refused("is damaged: trained.safetensors differs from its checksum")
    file.unlink()
    refused("is missing")
    write_start(file.parent, {"other": torch.zeros(2)})
    refused("differs")
