"""Adapter files under llama.cpp, beside a file of their base."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from smollm3_gguf import lora_file
from smollm3_gguf.lora import GgufLoraExporter
from smollm3_gguf.lora_reference import _only_plain_layers

from smollm3_finetune.api import BuildContext, Exported, NoOptions

ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


@pytest.fixture
def checks(
    subject: Callable[[str], Exported],
    tmp_path: Path,
    context: Callable[..., BuildContext],
    monkeypatch: pytest.MonkeyPatch,
) -> Callable[..., dict[str, Any]]:
    """Exports an adapter with random factors; returns the checks by their names."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")

    def run(name: str, **config: Any) -> dict[str, Any]:
        made, path, out = subject(name), tmp_path / "adapter", tmp_path / "out"
        torch.manual_seed(0)
        arguments = {"target_modules": ALL, "r": 4, "lora_alpha": 6, "init_lora_weights": False} | config
        with _only_plain_layers():
            base = made.model.load(dtype=torch.float32)
            model = peft.get_peft_model(base, peft.LoraConfig(task_type="CAUSAL_LM", **arguments))
        model.save_pretrained(path, save_embedding_layers=False)
        out.mkdir()
        exported = Exported(model=made.model, adapter=path, name="lora", prompts=made.prompts)
        exporter = GgufLoraExporter(NoOptions())
        exporter.write(exported, out, context())
        found = {check.name: check for check in exporter.verify(exported, out, context())}
        assert [f.name for f in out.iterdir()] == ["lora.gguf"]
        return found

    return run


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("nope", {}),
        ("nope", {"use_rslora": True, "rank_pattern": {"k_proj": 8}, "alpha_pattern": {"up_proj": 3}}),
        ("untied", {"target_modules": [*ALL, "lm_head"]}),
    ],
    ids=["plain", "patterns", "head"],
)
@pytest.mark.filterwarnings("ignore")
def test_llama_cpp_computes_what_peft_does(name: str, config: dict[str, Any], checks: Any) -> None:
    found = checks(name, **config)
    assert [c.passed for c in found.values()] == [True, True, True], found
    assert found["llama.cpp logits"].figures["difference"] < 2e-5


def test_rows_in_another_order_are_found_by_llama_cpp(checks: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for function in ("interleaved", "restored"):  # the same mistake in writing and in reading
        monkeypatch.setattr(lora_file, function, lambda rows, heads: slice(None))
    found = checks("nope")
    assert [c.passed for c in found.values()] == [True, True, False]
    assert "llama.cpp with base and adapter differs by" in found["llama.cpp logits"].says
