"""The card of an adapter on a base that was quantized here: its commands are right, or it says what to run first."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from smollm3_finetune.api import ModelError, SmolLM3Error
from smollm3_finetune.model import load_model
from smollm3_finetune.testing import relative_error

pytest_plugins = ["smollm3_finetune.testing.fixtures"]  # for `cli`
pytestmark = pytest.mark.plugins
SCALE = Path(__file__).parents[3] / "tests" / "out_of_tree" / "scale_adapter.py"
IDS = torch.randint(3, 120, (2, 24), generator=torch.Generator().manual_seed(7))


def logits(model):
    with torch.no_grad():
        return model.eval()(input_ids=IDS, use_cache=False).logits.double()


def off(found, right):
    return relative_error({"": found}, {"": right})


def python_of(card, dense):
    (snippet,) = re.findall(r"^```python\n(.*?)^```$", card, re.MULTILINE | re.DOTALL)
    found = {}
    exec(snippet.replace(f"path/to/{dense.name}", str(dense)).replace("path/to/scale_adapter.py", str(SCALE)), found)
    return found["model"]


@pytest.mark.parametrize("adapter", ["lora", "dora", "scale"])
def test_the_card_is_right_in_the_run_and_says_what_to_run_first_elsewhere(dense, cli, fake, monkeypatch, adapter):
    if adapter == "scale" and not SCALE.exists():
        pytest.skip("needs tests/out_of_tree of the repository")
    plugin = ("-p", SCALE) if adapter == "scale" else ()
    run = (
        "train", "--model", dense, "--quant", "gptq", "--quant-opt", "group_size=32", "--adapter", adapter,
        "--set", "calibration.rows=8", "--set", "calibration.length=48", "--set", "data.limit=40", "--max-length", "64",
        "--max-steps", "2", "--lr", "3e-2", "--set", "train.sample_tokens=4", "--dtype", "float32", "--output", "run",
        *plugin,
    )  # fmt: skip
    done = cli(*run)
    assert done.code == 0, done.stderr
    card = Path("run/adapter/README.md").read_text(encoding="utf-8")
    assert "the base was quantized by `gptq` (group_size=32) on rows of the training run when it was loaded" in card
    assert "**First:**" in card and "smollm3 merge RUN --output merged" in card
    assert "calibration.json" in card and str(dense) not in card
    pushed = cli("push", "run", "me/x", "--dry-run", "--json").report()
    assert {"name": "calibration.json", "why": "training rows"} in pushed["left_out"]
    assert any("publish the merged model instead: smollm3 merge" in note for note in pushed["notes"])
    work = Path.cwd()
    with monkeypatch.context() as inside:
        inside.chdir("run/adapter")
        right = logits(python_of(card, dense))
    plugins = [str(SCALE)] if plugin else []
    of_generate = load_model(dense, adapter_path="run/adapter", dtype="float32", plugins=plugins)
    assert off(right, logits(of_generate.model)) <= 1e-6
    plain = AutoModelForCausalLM.from_pretrained(dense, dtype=torch.float32)
    assert off(logits(plain), right) > 1e-2, "the unquantized base alone is another model"

    shutil.copytree("run/adapter", work / "elsewhere" / "shared")
    monkeypatch.chdir("elsewhere/shared")
    with pytest.raises(SmolLM3Error) as refused:
        python_of(card, dense)
    assert isinstance(refused.value, ModelError) or "calibration" in str(refused.value)
    monkeypatch.chdir(work)
    merged = cli("merge", "run", "--output", "merged", "--dtype", "float32", *plugin)
    assert merged.code == 0, merged.stderr
    assert off(logits(AutoModelForCausalLM.from_pretrained("merged", dtype=torch.float32)), right) <= 1e-4
