"""The examples of docs/python.md: loops and trainers of other libraries, on a model of `load_model`."""

from __future__ import annotations

import importlib.util
import runpy
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from smollm3_finetune import load_model

EXAMPLES = Path(__file__).parents[2] / "examples"
needs_trl = pytest.mark.skipif(importlib.util.find_spec("trl") is None, reason="trl is not installed: nox -s trl")
pytestmark = [
    pytest.mark.plugins,
    pytest.mark.filterwarnings("default"),  # they are those of other libraries
]
Example = Callable[..., dict[str, Any]]
IDS = torch.arange(5, 21).reshape(2, 8)


@pytest.fixture
def example(isolated: Path, monkeypatch: pytest.MonkeyPatch) -> Example:
    """Run an example, with replacements in its text; returns its variables."""
    shutil.copytree(EXAMPLES, isolated / "examples", ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.syspath_prepend(str(isolated / "examples" / "python"))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")

    def run(name: str, *replacements: tuple[str, str]) -> dict[str, Any]:
        file = isolated / "examples" / "python" / f"{name}.py"
        text = file.read_text(encoding="utf-8")
        for old, new in replacements:
            assert old in text
            text = text.replace(old, new)
        file.write_text(text, encoding="utf-8")
        shutil.rmtree("tuned", ignore_errors=True)
        sys.modules.pop("rows", None)
        return runpy.run_path(str(file))

    return run


def trained(values: dict[str, Any]) -> dict[str, torch.Tensor]:
    return {n: p.detach().clone() for n, p in values["loaded"].model.named_parameters() if p.requires_grad}


def logits(model: Any) -> torch.Tensor:
    model.eval()
    with torch.no_grad():
        out: torch.Tensor = model(input_ids=IDS.to(model.device), use_cache=False).logits
    return out


def assert_saved(values: dict[str, Any]) -> None:
    """The saved adapter is the trained one, and changes the model."""
    again, base = load_model("tiny", adapter_path="tuned", device="cpu"), load_model("tiny", device="cpu")
    torch.testing.assert_close(logits(again.model), logits(values["loaded"].model), rtol=0, atol=1e-6)
    assert (logits(again.model) - logits(base.model)).abs().max() > 1e-2


def test_the_loop_and_the_trainer_of_transformers_train_the_same_weights(example: Example) -> None:
    """With all rows in one batch, so that the order of the rows does not matter."""
    loop = example("loop", ("batch_size=4", "batch_size=8"))
    assert_saved(loop)
    trainer = example("trainer", ("train_batch_size=4", "train_batch_size=8"))
    assert_saved(trainer)
    one, other = trained(loop), trained(trainer)
    assert one.keys() == other.keys()
    # B starts at zero. Adam divides by the gradient, which multiplies rounding where it is almost zero.
    difference, size = (
        torch.cat([x.flatten() for x in rows]).norm()
        for rows in (
            [v - other[n] for n, v in one.items() if "lora_B" in n],
            [v for n, v in one.items() if "lora_B" in n],
        )
    )
    assert difference / size < 1e-4


def test_the_adapter_is_called_after_each_step_with_its_number(example: Example) -> None:
    record = "steps = []\nloaded.adapted.on_step = steps.append\n"
    loop = example("loop", ("batches = ", f"{record}batches = "))
    trainer = example("trainer", ("class OnStep", f"{record}class OnStep"))
    assert loop["steps"] == trainer["steps"] == [1, 2, 3, 4, 5, 6]


@needs_trl
def test_sft_trainer_trains_a_loaded_model(example: Example) -> None:
    values = example("trl_sft")
    assert_saved(values)
    losses = [row["loss"] for row in values["trainer"].state.log_history if "loss" in row]
    assert losses[-1] < losses[0]


@needs_trl
def test_dpo_trainer_trains_a_loaded_model_from_its_base(example: Example) -> None:
    values = example("trl_dpo")
    assert_saved(values)
    rows = [row for row in values["trainer"].state.log_history if "loss" in row]
    assert rows[0]["loss"] == pytest.approx(0.6931, abs=1e-3), "the reference of a new adapter is the base"
    assert rows[-1]["rewards/margins"] > rows[0]["rewards/margins"] == pytest.approx(0, abs=1e-4)
    assert not Path("tuned/ref").exists()
