"""LoRA and DoRA on torchao's weights: a step, saved and restored, merged; through the API and the command line."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from smollm3_torchao.linear import Int8Linear
from transformers import AutoModelForCausalLM

from smollm3_finetune.api import ModelError
from smollm3_finetune.model import load_model
from smollm3_finetune.testing import check_composition, plan, relative_error

pytest_plugins = ["smollm3_finetune.testing.fixtures"]
pytestmark = pytest.mark.plugins
NAME = "torchao-int8"
OPTIONS = [{}, {"group_size": 32}]
IDS = torch.randint(3, 2048, (6, 40), generator=torch.Generator().manual_seed(7))


def load(model, **more):
    return load_model(model, quant=NAME, device="cpu", dtype="float32", **more)


def logits(model):
    with torch.no_grad():
        return model.eval()(input_ids=IDS, use_cache=False).logits.double()


def off(found, right):
    return relative_error({"": found}, {"": right})


def step(loaded):
    """One step of gradient descent at a large rate, from a fresh adapter with noise on it; the loss before it."""
    model, generator = loaded.model.train(), torch.Generator().manual_seed(1)
    trained = [p for p in model.parameters() if p.requires_grad]
    with torch.no_grad():
        for parameter in trained:
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    loss = model(input_ids=IDS, labels=IDS, use_cache=False).loss
    loss.backward()
    with torch.no_grad():
        for parameter in trained:
            assert parameter.grad is not None
            parameter -= 0.05 * parameter.grad
    return loss.item()


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("adapter", ["lora", "dora"])
def test_an_adapter_trains_as_on_the_dense_copy(small_model, own_cache, adapter, options):
    chosen = plan(str(small_model), quant=NAME, adapter=adapter, quant_options=options, dtype="float64")
    result = check_composition(chosen)
    assert result.identity <= 1e-9
    assert result.moved > 1e-3
    assert max(*result.gradients.values(), *result.logits.values(), result.restored) <= 1e-9
    assert set(result.weights.values()) == {0.0}
    assert result.base_trained == []


@pytest.mark.parametrize("adapter", ["lora", "dora"])
def test_a_step_lowers_the_loss_and_comes_back_from_disk(small_model, own_cache, tmp_path, adapter):
    loaded = load(small_model, adapter=adapter, purpose="train")
    assert any(isinstance(m, Int8Linear) for m in loaded.model.modules())
    before = step(loaded)
    with torch.no_grad():
        after = loaded.model(input_ids=IDS, labels=IDS, use_cache=False).loss.item()
    assert after < before
    loaded.save(tmp_path / "adapter")
    again = load(small_model, adapter_path=tmp_path / "adapter")
    assert torch.equal(logits(again.model), logits(loaded.model))


def test_an_adapter_is_refused_on_another_base(small_model, own_cache, tmp_path):
    loaded = load(small_model, adapter="lora", purpose="train")
    loaded.save(tmp_path / "adapter")
    with pytest.raises(ModelError, match="trained on other weights"):
        load(small_model, quant_options={"group_size": 32}, adapter_path=tmp_path / "adapter")


@pytest.mark.parametrize("adapter", ["lora", "dora"])
def test_the_merged_model_computes_what_the_adapter_does_on_the_codes(small_model, cli, tmp_path, adapter):
    alone = logits(load(small_model).model)
    loaded = load(small_model, adapter=adapter, purpose="train")
    step(loaded)
    loaded.save(tmp_path / "adapter")
    right = logits(loaded.model)
    assert off(right, alone) > 0.05, "an adapter that moves nothing shows nothing"
    out = tmp_path / "merged"
    done = cli(
        "merge", small_model, "--quant", NAME, "--adapter-path", tmp_path / "adapter", "--output", out,
        "--dtype", "float32", "--device", "cpu", "--json",
    )  # fmt: skip
    assert done.code == 0, done.stderr
    merged = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32)
    assert off(logits(merged), right) <= 1e-5
    assert "quantization_config" not in json.loads((out / "config.json").read_text())
    assert json.loads(done.stdout)["figures"]["excess"] <= 1e-5


def test_a_run_is_trained_asked_and_merged_from_the_command_line(cli, own_cache, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = cli(
        "train", "--quant", NAME, "--adapter", "dora", "--max-steps", "2", "--batch-size", "2", "--output", "run",
        "--device", "cpu", "--set", "train.sample_tokens=4",
    )  # fmt: skip
    assert done.code == 0, done.stderr
    assert (Path("run") / "adapter" / "adapter_model.safetensors").is_file()
    answer = cli("generate", "run", "--prompt", "Hello!", "--max-new-tokens", "3", "--device", "cpu")
    assert answer.code == 0, answer.stderr
    merged = cli("merge", "run", "--device", "cpu", "--json")
    assert merged.code == 0, merged.stderr
    figures = json.loads(merged.stdout)["figures"]
    assert math.isfinite(figures["excess"]) and figures["excess"] <= 1e-3
