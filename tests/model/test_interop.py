"""A saved adapter is in PEFT's format: a process with only transformers and peft computes the same logits."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import smollm3_finetune
from smollm3_finetune.components.discovery import discover
from smollm3_finetune.components.registry import known_components
from smollm3_finetune.testing import dense_copy, plan, relative_error

pytestmark = pytest.mark.plugins

TINY = Path(smollm3_finetune.__file__).parent / "builtin" / "tiny"
PAIRS = [*((q, a) for q in ("none", "bnb-4bit", "bnb-8bit") for a in ("lora", "dora")), ("none", "adalora")]
NOISE = {"adalora": 0.1}
"""Its update is a product of three factors, of which one is zero at the start."""
DENSE = 1e-5
"""float32: eight layers of products with another order of summation."""
SAME_BASE = {"none": DENSE, "bnb-4bit": DENSE, "bnb-8bit": 5e-2}
"""bitsandbytes' own 8-bit evaluation rounds activations to 8 bits too; ours on a CPU does not."""
STOCK_FAILS = {("bnb-8bit", "dora")}
"""PEFT's own DoRA on 8-bit layers fails in a forward after an evaluation."""

PLAIN = """
import json, sys
import torch
from peft import PeftModel
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

CONFIGS = {
    "none": None,
    "bnb-4bit": dict(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
                     bnb_4bit_compute_dtype=torch.float32),
    "bnb-8bit": dict(load_in_8bit=True),
}
out = {}
for job in json.load(open(sys.argv[1])):
    config = CONFIGS[job["quant"]] if job["quant"] else None
    quantized = {"quantization_config": BitsAndBytesConfig(**config)} if config else {}
    model = AutoModelForCausalLM.from_pretrained(job["base"], dtype=torch.float32, **quantized)
    for layer in model.modules():  # on a CPU with AVX512-BF16 the first evaluation would repack a 4-bit layer
        if hasattr(layer, "support_avx512bf16_for_cpu"):
            layer.support_avx512bf16_for_cpu = False
    model = PeftModel.from_pretrained(model, job["adapter"]).eval()
    with torch.no_grad():
        out[job["name"]] = model(input_ids=torch.tensor(job["ids"]), use_cache=False).logits.contiguous()
save_file(out, sys.argv[2])
assert not [m for m in sys.modules if m.startswith("smollm3")], "this process must be plain"
"""


def tuned(quant: str, adapter: str, directory: Path) -> tuple[Any, float]:
    """Logits of a perturbed adapter, saved with the dense copy of its base, and their distance from the base's."""
    import torch

    made = plan("tiny", quant=quant, adapter=adapter)
    base = made.quantizer.create().load(made.source, made.context)
    dense_copy(base).save_pretrained(str(directory / "dense"))
    assert made.adapter is not None
    adapted = made.adapter.create().attach(base, made.context, 20)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in adapted.model.parameters():
            if parameter.requires_grad:
                parameter.add_(NOISE.get(adapter, 0.04) * torch.randn(parameter.shape, generator=generator))
        adapted.model.eval()
        logits = adapted.model(input_ids=torch.tensor(IDS), use_cache=False).logits
        with adapted.disabled():
            alone = adapted.model(input_ids=torch.tensor(IDS), use_cache=False).logits
    adapted.save(directory / "adapter")
    return logits, relative_error({"": logits}, {"": alone})


IDS = [[7 * i % 1000 + 5 for i in range(n, n + 24)] for n in (0, 50)]


def test_plain_peft_computes_the_same_logits(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    right, jobs = {}, []
    for quant, adapter in PAIRS:
        directory = tmp_path / f"{quant}-{adapter}"
        logits, moved = tuned(quant, adapter, directory)
        assert moved >= 0.05, f"{quant} {adapter} moves the logits by {moved:.3f} only"
        config = json.loads((directory / "adapter" / "adapter_config.json").read_text())
        assert config["base_model_name_or_path"] == "tiny", "what the user typed, never a cache path"
        right[quant, adapter] = logits
        job = {"adapter": str(directory / "adapter"), "ids": IDS}
        jobs.append({**job, "name": f"{quant} {adapter} dense", "base": str(directory / "dense"), "quant": None})
        if (quant, adapter) not in STOCK_FAILS:
            jobs.append({**job, "name": f"{quant} {adapter} same", "base": str(TINY), "quant": quant})
    (tmp_path / "jobs.json").write_text(json.dumps(jobs))
    (tmp_path / "plain.py").write_text(PLAIN)
    command = [sys.executable, str(tmp_path / "plain.py"), str(tmp_path / "jobs.json"), str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for name, logits in load_file(str(tmp_path / "out")).items():
        quant, adapter, base = name.split()
        bound = DENSE if base == "dense" else SAME_BASE[quant]
        error = relative_error({"": logits}, {"": right[quant, adapter]})
        assert error <= bound, f"{name}: {error:.2e}"


def test_the_install_hints_know_every_component_of_the_first_party_plugins() -> None:
    known = known_components()
    for component in discover().components:
        if component.distribution != "smollm3-finetune":
            for name in (component.spec.name, *component.spec.aliases):
                assert known[component.kind.name][name] == component.distribution
