"""Merging on a GPTQ base, and quantizing the result again: `smollm3 merge` has no special code for GPTQ."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from smollm3_finetune.model import load_model
from smollm3_finetune.testing import relative_error

pytest_plugins = ["smollm3_finetune.testing.fixtures"]  # for `cli`
pytestmark = pytest.mark.plugins
IDS = torch.randint(3, 120, (6, 40), generator=torch.Generator().manual_seed(7))
"""240 positions."""
BOUND = 1e-4
CASES = {
    "4 bits, v1": {},
    "4 bits, v2, act-order, asymmetric": {"layout": "gptq_v2", "act_order": True, "sym": False},
    "3 bits, whole rows": {"bits": 3, "group_size": -1},
    "8 bits, biases": {"bits": 8, "bias": True},
}


def logits(model):
    with torch.no_grad():
        return model.eval()(input_ids=IDS, use_cache=False).logits.double()


def off(found, right):
    return relative_error({"": found}, {"": right})


@pytest.fixture
def tokenized(dense):
    """Adds a tokenizer to a checkpoint; its vocabulary is larger than the model's, so prompts are random ids."""

    def put(directory):
        for file in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
            if (dense / file).exists():
                shutil.copy(dense / file, directory)
        return directory

    return put


def trained(checkpoint, adapter, path):
    """Save an adapter far from its initial values; return its logits on the checkpoint and those of the base alone."""
    alone = logits(load_model(checkpoint).model)
    loaded = load_model(checkpoint, adapter=adapter, purpose="train")
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in loaded.model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    loaded.save(path)
    return logits(loaded.model), alone


@pytest.mark.parametrize("adapter", ["lora", "dora"])
@pytest.mark.parametrize("case", CASES)
def test_the_merged_model_equals_the_adapter_on_the_quantized_base(numpy_gptq, tokenized, cli, case, adapter):
    made = tokenized(numpy_gptq.make_checkpoint(Path("made").absolute(), **CASES[case]))
    right, alone = trained(made, adapter, Path("adapter"))
    assert off(right, alone) > 0.05, "the adapter must change the logits"
    done = cli("merge", made, "--adapter-path", "adapter", "--output", "merged", "--dtype", "float32", "--json")
    assert done.code == 0, done.stderr
    model = AutoModelForCausalLM.from_pretrained("merged", dtype=torch.float32)
    assert off(logits(model), right) <= BOUND
    assert "quantization_config" not in json.loads(Path("merged/config.json").read_text())
    figures = json.loads(done.stdout)["figures"]
    assert figures["positions"] >= 200
    assert figures["excess"] <= BOUND


def test_a_tuned_model_is_quantized_again_on_the_rows_of_its_run(dense, cli, fake):
    run = (
        "train", "--model", dense, "--quant", "gptq", "--quant-opt", "group_size=32", "--adapter", "lora",
        "--set", "calibration.rows=8", "--set", "calibration.length=48", "--set", "data.limit=40", "--max-length", "64",
        "--max-steps", "2", "--lr", "1e-2", "--set", "train.sample_tokens=4", "--output", "run",
    )  # fmt: skip
    assert cli(*run).code == 0
    done = cli("merge", "run", "--requantize", "gptq", "--requantize-opt", "bits=4", "--keep-dense", "dense", "--json")
    assert done.code == 0, done.stderr
    kept = json.loads(Path("run/calibration.json").read_text())["input_ids"]
    usable = [row for row in kept if len(row) > 10]
    assert fake.events("rows") == [usable, usable], "the merged model must be quantized with the rows of the base"
    out = Path("run/merged-gptq")
    assert json.loads((out / "config.json").read_text())["quantization_config"]["quant_method"] == "gptq"
    assert "gptq" in (out / "README.md").read_text()
    assert json.loads(done.stdout)["requantized"]["drift"] > 0
    again = load_model(out)
    assert again.plan.quantizer.component.spec.name == "gptq"
    assert again.base.ops_for(again.model.get_submodule("model.layers.0.mlp.up_proj")) is not None
    AutoModelForCausalLM.from_pretrained("dense", dtype=torch.float32)
