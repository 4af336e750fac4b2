"""Adapters of PEFT that change only one of tied embeddings and head: refused, or merged into two matrices."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from smollm3_peft.methods import METHODS
from transformers import ZambaConfig, ZambaForCausalLM

from smollm3_finetune.api import IncompatibleError, ModelError

UNTYING: dict[str, dict[str, Any]] = {
    "head": {"modules_to_save": ["lm_head"]},
    "embeddings": {"modules_to_save": ["embed_tokens"]},
    "both": {"modules_to_save": ["lm_head", "embed_tokens"]},
    "lora on the embeddings": {"target_modules": ["q_proj", "embed_tokens"]},
    "lora on the head": {"target_modules": ["q_proj", "lm_head"]},
    "lora on both": {"target_modules": ["q_proj", "embed_tokens", "lm_head"]},
}


def saved(lab: Any, path: Path, **changes: Any) -> torch.Tensor:
    """An adapter that PEFT alone made and saved on a tied model; its logits."""
    about = {"target_modules": ["q_proj"], "r": 4, "task_type": "CAUSAL_LM", **changes}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT's, about the tie and about names of transformers
        model = get_peft_model(lab.tiny(), LoraConfig(**about))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                noise = torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
                parameter.add_(0.05 * noise)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.save_pretrained(path)
    logits: torch.Tensor = lab.logits(model)
    return logits


@pytest.mark.parametrize("changes", UNTYING.values(), ids=list(UNTYING))
def test_an_adapter_that_unties_is_merged_into_two_matrices_if_allowed(
    lab: Any, tmp_path: Path, changes: dict[str, Any]
) -> None:
    right = saved(lab, tmp_path, **changes)
    adapter = lab.make_adapter("lora")
    with pytest.raises(IncompatibleError) as e:
        adapter.merge(lab.tiny(), tmp_path)
    assert e.value.hint == "to write both matrices: --untie"
    dense = lab.tiny()
    dense.config.tie_word_embeddings = False
    merged = adapter.merge(dense, tmp_path)
    assert lab.distance(lab.logits(merged), right) <= 1e-6
    assert not merged.config.tie_word_embeddings
    head, embeddings = merged.get_output_embeddings().weight, merged.get_input_embeddings().weight
    assert not torch.equal(head, embeddings)


@pytest.mark.parametrize("changes", [{}, {"target_modules": ["q_proj", "embed_tokens"], "ensure_weight_tying": True}])
def test_an_adapter_that_keeps_the_tie_is_merged_the_same_with_permission(
    lab: Any, tmp_path: Path, changes: dict[str, Any]
) -> None:
    right = saved(lab, tmp_path, **changes)
    for tied in (True, False):
        dense = lab.tiny()
        dense.config.tie_word_embeddings = tied
        merged = lab.make_adapter("lora").merge(dense, tmp_path)
        assert lab.distance(lab.logits(merged), right) <= 1e-6
        assert merged.config.tie_word_embeddings is tied


def zamba() -> Any:
    """A model whose two attention blocks share their weights."""
    about = {
        "hidden_size": 32,
        "num_hidden_layers": 6,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "vocab_size": 64,
    }
    torch.manual_seed(0)
    return ZambaForCausalLM(ZambaConfig(**about, attn_layer_period=3, attn_layer_offset=1, intermediate_size=32)).eval()


@pytest.mark.parametrize("target", ["q_proj", "in_proj"])
def test_layers_that_share_a_weight_and_have_two_adapters_are_not_merged(lab: Any, tmp_path: Path, target: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT's, about names of transformers
        model = get_peft_model(zamba(), LoraConfig(target_modules=[target], r=2, task_type="CAUSAL_LM"))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    ids = torch.arange(8)[None]
    right = model(ids).logits.detach()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.save_pretrained(tmp_path)
    adapter = lab.make_adapter("lora")
    if target == "in_proj":  # of the Mamba layers, which are not shared
        assert torch.allclose(adapter.merge(zamba(), tmp_path)(ids).logits, right, atol=1e-5)
        return
    with pytest.raises(IncompatibleError, match=r"layers\.2.* and .*layers\.4.* share a weight") as e:
        adapter.merge(zamba(), tmp_path)
    assert "smollm3 generate" in e.value.hint


def test_replicated_layers_are_refused_by_name(lab: Any, tmp_path: Path) -> None:
    saved(lab, tmp_path)
    file = tmp_path / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "layer_replication": [[0, 2], [0, 2]]}))
    with pytest.raises(ModelError, match="layer_replication, which repeats layers of the base, is not supported"):
        lab.make_adapter("lora").merge(lab.tiny(), tmp_path)


@pytest.mark.parametrize(
    ("about", "method"),
    [
        ({"peft_type": "LORA"}, "lora"),
        ({"peft_type": "LORA", "use_dora": True}, "dora"),
        ({"peft_type": "LORA", "use_rslora": True}, "rslora"),
        ({"peft_type": "LN_TUNING"}, "ln-tuning"),
        ({"peft_type": "P_TUNING"}, "p-tuning"),
        ({"peft_type": "XLORA"}, None),
        ({"base_model_name_or_path": "a/b"}, None),
    ],
)
def test_one_method_recognizes_an_adapter_config(about: dict[str, Any], method: str | None) -> None:
    assert [s.name for s in METHODS if s.claims is not None and s.claims(about)] == ([method] if method else [])
