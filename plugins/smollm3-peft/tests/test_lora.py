"""Tests of the LoRA family only: initializations, biases, tied embeddings, saved modules, libraries."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import peft.import_utils
import pytest
import torch
from smollm3_peft.linear_view import LinearView
from smollm3_peft.methods import refined
from smollm3_peft.options import LoraOptions
from torch import nn
from transformers import Qwen2Config, Qwen2ForCausalLM

from smollm3_finetune.api import Base, IncompatibleError, Op, Purpose, UnsupportedOp


def trained(lab: Any, adapted: Any, steps: int = 2) -> torch.Tensor:
    """Train for a few steps and return the logits."""
    parameters = [p for p in adapted.model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1e-2)
    for step in range(1, steps + 1):
        lab.gradients(adapted.model)
        optimizer.step()
        adapted.on_step(step)
    adapted.model.zero_grad()
    out: torch.Tensor = lab.logits(adapted.model)
    return out


@pytest.mark.parametrize("init", ["default", "gaussian", "orthogonal", "mica", "pissa", "olora"])
def test_every_initialization_restores_and_merges(lab: Any, tmp_path: Path, init: str) -> None:
    dtype = torch.float32
    base = lab.make_base("none", dtype)
    before = lab.logits(base.model)
    adapter = lab.make_adapter("lora", init=init)
    adapted = adapter.attach(base, lab.context(dtype), None)
    assert lab.distance(lab.logits(adapted.model), before) <= 1e-5
    after = trained(lab, adapted)
    assert lab.distance(after, before) >= 0.05
    adapted.save(tmp_path)
    restored = lab.make_adapter("lora").restore(lab.make_base("none", dtype), tmp_path, lab.context(dtype), None)
    assert lab.distance(lab.logits(restored.model), after) <= 1e-6
    merged = adapter.merge(lab.tiny(dtype), tmp_path)
    assert lab.distance(lab.logits(merged), after) <= 5e-6


@pytest.mark.parametrize("init", ["pissa", "olora"])
def test_initializations_that_alter_the_base_are_refused_on_a_quantized_one(lab: Any, init: str) -> None:
    spec = refined("lora", LoraOptions(init=init))
    assert {Op.READ_WEIGHT, Op.DENSE} <= spec.needs
    assert not spec.disables
    with pytest.raises(UnsupportedOp, match="needs dense"):
        lab.make_adapter("lora", init=init).attach(lab.make_base("stub"), lab.context(), None)


def test_an_adapter_that_altered_its_base_cannot_be_disabled(lab: Any) -> None:
    dtype = torch.float32
    adapted = lab.make_adapter("lora", init="pissa").attach(lab.make_base("none", dtype), lab.context(dtype), None)
    with (
        pytest.raises(UnsupportedOp, match="cannot be disabled: it moved part of the base weights into the adapter"),
        adapted.disabled(),
    ):
        pass


def test_lora_does_not_read_the_weight(lab: Any) -> None:
    model = lab.make_base("stub").model
    base = Base(model=model, fingerprint="", ops_for=lab.stub_ops_without_read)
    adapted = lab.make_adapter("lora").attach(base, lab.context(), None)
    assert trained(lab, adapted).isfinite().all()
    with pytest.raises(UnsupportedOp, match="adapter 'dora' needs read-weight"):
        lab.make_adapter("dora").attach(
            Base(model=lab.make_base("stub").model, fingerprint="", ops_for=lab.stub_ops_without_read),
            lab.context(),
            None,
        )


def test_layers_without_an_adapter_are_unchanged(lab: Any) -> None:
    base = lab.make_base("stub")
    untouched = base.model.model.layers[0].mlp.gate_proj
    adapter = lab.make_adapter("lora", target_modules=("q_proj", "v_proj"), layers=(1,))
    model = adapter.attach(base, lab.context(), None).model.get_base_model()
    assert model.model.layers[0].mlp.gate_proj is untouched
    assert sum(isinstance(m, LinearView) for m in model.modules()) == 2
    assert isinstance(model.model.layers[1].self_attn.q_proj.base_layer, LinearView)


def test_the_head_gets_no_adapter_by_default(lab: Any) -> None:
    model = lab.make_adapter("lora").attach(lab.make_base("none"), lab.context(), None).model
    adapted = {n.split(".")[-2] for n, m in model.named_modules() if n.endswith(".lora_A")}
    assert adapted == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}


@pytest.mark.parametrize(
    "changes", [{"target_modules": ("all-linear", "embed_tokens")}, {"modules_to_save": ("embed_tokens",)}]
)
@pytest.mark.parametrize("kind", ["none", "stub"])
def test_tied_embeddings_stay_tied_through_merge(lab: Any, tmp_path: Path, kind: str, changes: dict[str, Any]) -> None:
    base = lab.make_base(kind)
    before = lab.logits(base.model)
    adapted = lab.make_adapter("lora", **changes).attach(base, lab.context(), None)
    after = trained(lab, adapted)
    assert lab.distance(after, before) >= 0.05
    with adapted.disabled():
        assert lab.distance(lab.logits(adapted.model), before) == 0
    assert lab.distance(lab.logits(adapted.model), after) == 0
    adapted.save(tmp_path)
    restored = lab.make_adapter("lora", **changes).restore(lab.make_base(kind), tmp_path, lab.context(), None)
    assert lab.distance(lab.logits(restored.model), after) <= 1e-9
    merged = lab.make_adapter("lora").merge(lab.dense_copy(lab.make_base(kind).model), tmp_path)
    assert lab.distance(lab.logits(merged), after) <= 2e-6
    assert merged.config.tie_word_embeddings
    assert merged.get_output_embeddings().weight.data_ptr() == merged.get_input_embeddings().weight.data_ptr()


def qwen(lab: Any) -> Any:
    """A model with biases in its attention; SmolLM3 has none."""
    config = Qwen2Config(
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        intermediate_size=128,
        vocab_size=128,
        tie_word_embeddings=True,
        attn_implementation="eager",
    )
    torch.manual_seed(0)
    model = Qwen2ForCausalLM(config).double().eval()
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            nn.init.normal_(parameter, std=0.1)
    model.requires_grad_(False)
    return model


@pytest.mark.parametrize("bias", ["all", "lora_only"])
@pytest.mark.parametrize("kind", ["none", "stub"])
def test_trained_biases_are_saved_restored_and_left_out_when_disabled(
    lab: Any, tmp_path: Path, kind: str, bias: str
) -> None:
    base = lab.make_base(kind, model=qwen(lab))
    before = lab.logits(base.model)
    adapter = lab.make_adapter("lora", bias=bias, target_modules=("q_proj", "v_proj"))
    adapted = adapter.attach(base, lab.context(), None)
    names = [n for n, p in adapted.model.named_parameters() if p.requires_grad and n.endswith("bias")]
    assert len(names) == (6 if bias == "all" else 4)
    after = trained(lab, adapted)
    with adapted.disabled():
        assert lab.distance(lab.logits(adapted.model), before) == 0
    assert lab.distance(lab.logits(adapted.model), after) == 0
    adapted.save(tmp_path)
    restored = adapter.restore(lab.make_base(kind, model=qwen(lab)), tmp_path, lab.context(), None)
    assert lab.distance(lab.logits(restored.model), after) <= 1e-9
    with restored.disabled():
        assert lab.distance(lab.logits(restored.model), before) == 0
    merged = adapter.merge(lab.dense_copy(lab.make_base(kind, model=qwen(lab)).model), tmp_path)
    assert lab.distance(lab.logits(merged), after) <= 2e-6


PLAIN_PEFT = """
import sys, torch
from pathlib import Path
from peft import PeftModel
from transformers import AutoModelForCausalLM
for path in map(Path, sys.argv[1:]):
    dense = AutoModelForCausalLM.from_pretrained(path / "dense", dtype=torch.float32, attn_implementation="eager")
    model = PeftModel.from_pretrained(dense, path / "adapter").eval()
    ids, expected = torch.load(path / "expected.pt")
    with torch.no_grad():
        logits = model(input_ids=ids, use_cache=False).logits
    print(float((logits - expected).norm() / expected.norm()))
assert not any(name.startswith("smollm3") for name in sys.modules), "this must be stock PEFT"
"""


@pytest.mark.long
def test_stock_peft_in_another_process_gives_the_same_logits(lab: Any, tmp_path: Path) -> None:
    """After training steps; tests/model/test_interop.py has a shorter form."""
    dtype = torch.float32
    paths = []
    for method in ("lora", "dora", "adalora"):
        path = tmp_path / method
        base = lab.make_base("stub", dtype)
        lab.dense_copy(base.model).save_pretrained(path / "dense")
        before = lab.logits(base.model)
        adapted = lab.make_adapter(method, alpha=64).attach(base, lab.context(dtype), 20)
        after = trained(lab, adapted, steps=6)
        assert lab.distance(after, before) >= 0.05
        adapted.save(path / "adapter")
        torch.save((lab.IDS, after), path / "expected.pt")
        paths.append(str(path))
    command = [sys.executable, "-c", PLAIN_PEFT, *paths]
    result = subprocess.run(command, capture_output=True, text=True, check=True, env=_without_plugin())
    lines = result.stdout.splitlines()  # libraries that plain PEFT imports may print, too
    distances = [float(line) for line in lines if re.fullmatch(r"[\d.e+-]+", line)]
    assert len(distances) == 3
    assert max(distances) <= 2e-6


def _without_plugin() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | {"HF_HUB_OFFLINE": "1"}


def test_saved_adapters_name_the_users_model_reference(lab: Any, tmp_path: Path) -> None:
    adapted = lab.make_adapter("lora").attach(lab.make_base("none"), lab.context(), None)
    adapted.model.save_pretrained(str(tmp_path))  # as the trainer's checkpoints are written
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "someone/tiny-model"
    assert config["revision"] is None


def test_saving_does_not_use_the_network(lab: Any, tmp_path: Path, monkeypatch: Any) -> None:
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("the network was used")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    adapted = lab.make_adapter("lora", target_modules=("embed_tokens",)).attach(
        lab.make_base("none"), lab.context(), None
    )
    adapted.save(tmp_path)
    assert (tmp_path / "adapter_model.safetensors").stat().st_size < 20_000  # the adapter, not the embeddings


@pytest.mark.parametrize("method", ["lora", "dora", "vera", "oft", "adalora"])
def test_broken_quantization_libraries_do_not_matter(lab: Any, monkeypatch: Any, method: str) -> None:
    def broken(*args: Any, **kwargs: Any) -> bool:
        raise ImportError("Found an incompatible version of torchao")

    poisoned = 0
    names = ("torchao", "gptqmodel", "aqlm", "eetq", "hqq", "inc", "te_pytorch")
    for module in list(sys.modules.values()):
        if getattr(module, "__name__", "").startswith("peft"):
            for name in names:
                if hasattr(module, f"is_{name}_available"):
                    monkeypatch.setattr(module, f"is_{name}_available", broken)
                    poisoned += 1
    assert poisoned > 10
    with pytest.raises(ImportError):
        peft.import_utils.is_torchao_available()
    for kind in ("none", "stub"):
        adapted = lab.make_adapter(method).attach(lab.make_base(kind), lab.context(), 20)
        assert trained(lab, adapted).isfinite().all()


def test_a_wrong_forward_is_refused_at_attach(lab: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr(LinearView, "forward", lambda self, x: 2 * self.quantized_layer(x))
    with pytest.raises(IncompatibleError, match="should not change the output of its base"):
        lab.make_adapter("lora").attach(lab.make_base("stub"), lab.context(), None)


def test_dora_on_rows_of_zeros_is_refused_with_the_reason(lab: Any) -> None:
    base = lab.make_base("none")
    base.model.model.layers[0].self_attn.q_proj.weight[3] = 0
    lab.make_adapter("lora").attach(base, lab.context(), None)
    base = lab.make_base("none")
    base.model.model.layers[0].self_attn.q_proj.weight[3] = 0
    with pytest.raises(IncompatibleError, match="rows of zeros"):
        lab.make_adapter("dora").attach(base, lab.context(), None)


def test_attaching_keeps_the_random_state_and_follows_the_seed(lab: Any) -> None:
    weights = []
    for _ in range(2):
        base = lab.make_base("none")
        state = torch.get_rng_state()
        model = lab.make_adapter("lora").attach(base, lab.context(), None).model
        assert torch.equal(torch.get_rng_state(), state)
        weights.append(model.get_base_model().model.layers[0].self_attn.q_proj.lora_A["default"].weight)
    assert torch.equal(*weights)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_adapters_of_half_precision_bases_are_float32(lab: Any, tmp_path: Path, dtype: torch.dtype) -> None:
    adapted = lab.make_adapter("lora").attach(lab.make_base("none", dtype), lab.context(dtype), None)
    assert {p.dtype for p in adapted.model.parameters() if p.requires_grad} == {torch.float32}
    assert trained(lab, adapted).dtype == dtype
    adapted.save(tmp_path)
    restored = lab.make_adapter("lora").restore(
        lab.make_base("none", dtype), tmp_path, lab.context(dtype, Purpose.INFER), None
    )
    assert lab.distance(lab.logits(restored.model), lab.logits(adapted.model)) == 0


def test_warnings_of_peft_do_not_reach_the_user(lab: Any, tmp_path: Path, recwarn: Any) -> None:
    adapted = lab.make_adapter("lora", target_modules=("all-linear", "embed_tokens")).attach(
        lab.make_base("stub"), lab.context(), None
    )
    adapted.save(tmp_path)
    with adapted.disabled():
        pass
    lab.make_adapter("lora").restore(lab.make_base("stub"), tmp_path, lab.context(), None)
    assert not [w for w in recwarn if "peft" in str(w.filename)]
