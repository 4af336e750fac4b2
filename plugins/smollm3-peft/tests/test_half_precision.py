"""In a bfloat16 run, every method trains float32 parameters and restores them exactly when the run is resumed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from smollm3_peft.methods import METHODS

from smollm3_finetune.model import load_model

STEPS = {"total_steps": 20}


def trained(loaded: Any) -> dict[str, torch.Tensor]:
    return {n: p for n, p in loaded.model.named_parameters() if p.requires_grad}


def nudge(tensors: dict[str, torch.Tensor]) -> None:
    """Add less than bfloat16 can represent next to values of size 1."""
    with torch.no_grad():
        for tensor in tensors.values():
            tensor.add_(torch.full_like(tensor, 1e-4))


@pytest.mark.parametrize("method", [spec.name for spec in METHODS])
def test_trained_parameters_are_float32_and_resumed_exactly(method: str, tmp_path: Path) -> None:
    options = {"token_ids": [5, 6]} if method == "trainable-tokens" else {}
    loaded = load_model("tiny", adapter=method, adapter_options=options, purpose="train", dtype="bfloat16", **STEPS)
    parameters = trained(loaded)
    assert {p.dtype for p in parameters.values()} == {torch.float32}
    nudge(parameters)
    loaded.save(tmp_path / "saved")
    again = load_model("tiny", adapter_path=tmp_path / "saved", purpose="train", dtype="bfloat16", **STEPS)
    resumed = trained(again)
    assert set(resumed) == set(parameters)
    if method not in ("prompt-tuning", "p-tuning", "prefix-tuning"):  # these save the output of their network
        assert all(torch.equal(resumed[n], p) for n, p in parameters.items())
    ids = torch.arange(12)[None]
    with torch.autocast("cpu", torch.bfloat16):
        loaded.model.train()
        loss = loaded.model(input_ids=ids, labels=ids).loss
    loss.backward()
    assert bool(loss.isfinite())
    answering = load_model("tiny", adapter_path=tmp_path / "saved", dtype="bfloat16")
    assert bool(answering.model(input_ids=ids).logits.isfinite().all())


def test_saved_modules_are_float32_too() -> None:
    options = {"rank": 4, "modules_to_save": ["embed_tokens"]}
    loaded = load_model("tiny", adapter="lora", adapter_options=options, purpose="train", dtype="bfloat16")
    assert {p.dtype for p in trained(loaded).values()} == {torch.float32}
