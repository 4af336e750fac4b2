"""The exporter `peft` passes the kit, refuses adapters that are not in PEFT's format, and finds changed tensors."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from smollm3_peft.exporter import PeftExporter

from smollm3_finetune.api import Check, IncompatibleError, Purpose
from smollm3_finetune.testing import ExporterConformance

pytestmark = pytest.mark.plugins


def write_peft_adapter(directory: Path) -> Path:
    """Files in PEFT's layout, as PEFT writes them for LoRA on one layer."""
    about = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 2, "target_modules": ["q_proj"]}
    (directory / "adapter_config.json").write_text(json.dumps(about))
    layer = "base_model.model.model.layers.0.self_attn.q_proj"
    factors = {f"{layer}.lora_A.weight": torch.ones(2, 64), f"{layer}.lora_B.weight": torch.zeros(64, 2)}
    save_file(factors, str(directory / "adapter_model.safetensors"))
    (directory / "chat_template.jinja").write_text("{{ messages }}")
    return directory


class TestPeft(ExporterConformance):
    component = "peft"

    def adapter(self, directory: Path) -> Path:
        return write_peft_adapter(directory)


def test_an_adapter_of_another_method_than_pefts_is_refused(tmp_path: Path) -> None:
    case = TestPeft()
    subject = case.subject(tmp_path)
    assert subject.adapter is not None
    (subject.adapter / "adapter_config.json").unlink()
    with pytest.raises(IncompatibleError, match="not saved in PEFT's format") as refused:
        PeftExporter(case.choose().options).write(subject, tmp_path, case.context(tmp_path, Purpose.EXPORT))
    assert refused.value.hint == "export the merged model instead: --to safetensors"


def test_the_checks_of_peft_name_a_changed_tensor(tmp_path: Path) -> None:
    case = TestPeft()
    subject = case.subject(tmp_path)
    out = case.written(tmp_path, subject)
    file = out / "adapter_model.safetensors"
    state = load_file(str(file))
    name = min(state)
    state[name][0, 0] = 7.0
    save_file(state, str(file))
    checks: list[Check] = [*PeftExporter(case.choose().options).verify(subject, out, case.context(tmp_path))]
    assert [(c.name, name in c.says) for c in checks if c.passed is False] == [("weights", True)]
