"""Layers that gptqmodel splits or that are not nn.Linear: joined exactly, or refused before anything is quantized."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from smollm3_gptq.options import GPTQOptions
from smollm3_gptq.quantizer import GPTQQuantizer
from transformers import (
    Glm4Config,
    Glm4ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GPTBigCodeConfig,
    GPTBigCodeForCausalLM,
    GraniteMoeConfig,
    GraniteMoeForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
)

from smollm3_finetune.api import (
    IncompatibleError,
    ModelError,
    directory_source,
    linear_shapes,
    place_layers,
    stack_ops_for,
)
from smollm3_finetune.model import load_model


class Said:
    def __init__(self):
        self.lines = []

    def say(self, message):
        self.lines.append(message)

    def task(self, description, total=None):
        return contextlib.nullcontext(SimpleNamespace(advance=lambda: None))


SMALL = {
    "vocab_size": 128, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip
OLD = {
    "vocab_size": 128, "n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 64, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
MODELS = {
    "phi3": lambda: Phi3ForCausalLM(Phi3Config(**SMALL)),
    "glm4": lambda: Glm4ForCausalLM(Glm4Config(**SMALL, head_dim=16, attention_bias=True)),
    "gpt2": lambda: GPT2LMHeadModel(GPT2Config(**OLD)),
    "gpt-bigcode": lambda: GPTBigCodeForCausalLM(GPTBigCodeConfig(**OLD)),
    "mixtral": lambda: MixtralForCausalLM(MixtralConfig(**SMALL, num_local_experts=4)),
    "granite": lambda: GraniteMoeForCausalLM(GraniteMoeConfig(**SMALL, num_local_experts=4, num_experts_per_tok=2)),
}
SPLITS = {"gate_up_proj": {"gate_proj": 96, "up_proj": 96}, "qkv_proj": {"q_proj": 64, "k_proj": 32, "v_proj": 32}}
"""Fused layer to the output features of its parts."""


def quantized(numpy_gptq, out, model, *, split=(), act_order=False, seed=0):
    """Write a model with random GPTQ codes in its decoder layers; returns the dense weights, fused and (out, in)."""
    rng = np.random.default_rng(seed)
    for parameter in model.parameters():
        if parameter.dim() == 1:
            torch.nn.init.normal_(parameter, 1.0 if parameter.mean() > 0.5 else 0.0, 0.1)
    model.save_pretrained(out)
    tensors = load_file(out / "model.safetensors")
    dense = {}
    for name, (features, inputs) in linear_shapes(model).items():
        if f"{name}.weight" not in tensors or (".0." not in name and ".1." not in name):
            continue
        del tensors[f"{name}.weight"]
        parent, _, own = name.rpartition(".")
        parts = SPLITS[own] if own in split else {own: features}
        order = rng.permutation(inputs) if act_order else np.arange(inputs)
        index = (order // 32).astype(np.int32)
        rows = []
        for part, width in parts.items():
            codes = rng.integers(0, 16, (inputs, width))
            scales = rng.uniform(0.005, 0.02, (-(-inputs // 32), width)).astype(np.float16)
            stored = np.full((scales.shape[0], width), 7)
            layer = f"{parent}.{part}"
            tensors |= {
                f"{layer}.qweight": numpy_gptq.pack(codes, 4),
                f"{layer}.qzeros": numpy_gptq.pack(stored.T, 4).T.copy(),
                f"{layer}.scales": scales,
                f"{layer}.g_idx": index,
            }
            rows.append(((codes - 8) * scales.astype(np.float32)[index]).T)
        dense[name] = np.concatenate(rows).astype(np.float32)  # exact
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
    about = json.loads((out / "config.json").read_text())
    about["quantization_config"] = {
        "quant_method": "gptq", "bits": 4, "group_size": 32, "desc_act": act_order, "sym": True,
    }  # fmt: skip
    (out / "config.json").write_text(json.dumps(about))
    return dense


def right_logits(model, dense, ids):
    """The logits of transformers' own model with the dense weights."""
    for name, weight in dense.items():
        layer = model.get_submodule(name)
        value = torch.from_numpy(weight)
        layer.weight.data = (value.T if hasattr(layer, "nf") else value).contiguous()
    with torch.no_grad():
        return model.eval()(input_ids=ids, use_cache=False).logits


@pytest.mark.parametrize(
    ("name", "split", "act_order"),
    [
        ("phi3", ("gate_up_proj",), False),
        ("phi3", ("gate_up_proj", "qkv_proj"), True),
        ("glm4", ("gate_up_proj",), False),
        ("gpt2", (), False),
        ("gpt2", (), True),
        ("gpt-bigcode", (), False),
    ],
)
def test_the_logits_are_those_of_the_dense_weights(numpy_gptq, tmp_path, name, split, act_order):
    torch.manual_seed(0)
    model = MODELS[name]()
    dense = quantized(numpy_gptq, tmp_path / "made", model, split=split, act_order=act_order)
    assert dense
    ids = torch.arange(3, 19)[None]
    loaded = load_model(tmp_path / "made", device="cpu", dtype="float32")
    with torch.no_grad():
        logits = loaded.model.eval()(input_ids=ids, use_cache=False).logits
    torch.testing.assert_close(logits, right_logits(model, dense, ids), rtol=1e-4, atol=1e-5)
    for layer, weight in dense.items():
        found = loaded.base.ops_for(loaded.model.get_submodule(layer)).read_weight()
        np.testing.assert_array_equal(found.numpy(), weight)


def test_parts_with_biases_are_joined(numpy_gptq, tmp_path):
    torch.manual_seed(0)
    model = MODELS["phi3"]()
    dense = quantized(numpy_gptq, tmp_path / "made", model, split=("gate_up_proj", "qkv_proj"))
    tensors = load_file(tmp_path / "made" / "model.safetensors")
    bias = np.linspace(-1, 1, 32, dtype=np.float32)
    tensors["model.layers.1.self_attn.k_proj.bias"] = bias
    save_file(tensors, tmp_path / "made" / "model.safetensors", metadata={"format": "pt"})
    loaded = load_model(tmp_path / "made", device="cpu", dtype="float32")
    fused = loaded.model.get_submodule("model.layers.1.self_attn.qkv_proj")
    np.testing.assert_array_equal(fused.bias.numpy(), np.concatenate([np.zeros(64), bias, np.zeros(32)]))
    assert loaded.model.get_submodule("model.layers.0.self_attn.qkv_proj").bias is None
    assert len(dense) == 8


def test_lora_trains_on_joined_layers_as_on_others(numpy_gptq, tmp_path):
    pytest.importorskip("smollm3_peft")
    torch.manual_seed(0)
    quantized(numpy_gptq, tmp_path / "made", MODELS["phi3"](), split=("gate_up_proj", "qkv_proj"))
    options = {"target_modules": ("gate_up_proj", "qkv_proj")}
    loaded = load_model(tmp_path / "made", adapter="lora", adapter_options=options, device="cpu", dtype="float32")
    ids = torch.arange(3, 19)[None]
    with torch.no_grad():
        adapted = loaded.model.eval()(input_ids=ids, use_cache=False).logits
        with loaded.adapted.disabled():
            base = loaded.model(input_ids=ids, use_cache=False).logits
    assert torch.equal(adapted, base)  # LoRA begins with zeros
    loaded.model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
    trained = {n: p for n, p in loaded.model.named_parameters() if p.requires_grad}
    assert len(trained) == 8  # two layers in each block, two factors each
    assert all(p.grad is not None and p.grad.any() for n, p in trained.items() if "lora_B" in n)


def test_parts_may_group_inputs_differently(numpy_gptq, tmp_path):
    torch.manual_seed(0)
    model = MODELS["phi3"]()
    dense = quantized(numpy_gptq, tmp_path / "made", model, split=("gate_up_proj",))
    tensors = load_file(tmp_path / "made" / "model.safetensors")
    name = "model.layers.0.mlp.up_proj"
    tensors[f"{name}.g_idx"] = tensors[f"{name}.g_idx"][::-1].copy()
    save_file(tensors, tmp_path / "made" / "model.safetensors", metadata={"format": "pt"})
    codes = numpy_gptq.unpack(tensors[f"{name}.qweight"], 4)
    scales = tensors[f"{name}.scales"].astype(np.float32)[tensors[f"{name}.g_idx"]]
    dense["model.layers.0.mlp.gate_up_proj"][96:] = ((codes - 8.0) * scales).T
    loaded = load_model(tmp_path / "made", device="cpu", dtype="float32")
    fused = loaded.model.get_submodule("model.layers.0.mlp.gate_up_proj")
    np.testing.assert_array_equal(
        loaded.base.ops_for(fused).read_weight().numpy(), dense["model.layers.0.mlp.gate_up_proj"]
    )


NAMES = {"now": {"gate_proj": "gate_proj", "up_proj": "up_proj", "down_proj": "down_proj"},
         "Mixtral's": {"gate_proj": "w1", "up_proj": "w3", "down_proj": "w2"}}  # fmt: skip


def quantized_experts(numpy_gptq, out, model, names):
    """Write a mixture whose experts have random GPTQ codes, each expert by itself; returns the stacked weights."""
    rng = np.random.default_rng(0)
    model.save_pretrained(out)
    tensors = {n: t for n, t in load_file(out / "model.safetensors").items() if ".experts." not in n}
    parent = "block_sparse_moe" if names is NAMES["Mixtral's"] else "mlp"
    dense = {}
    for layer in range(2):
        for stack, parts in {"gate_up_proj": ("gate_proj", "up_proj"), "down_proj": ("down_proj",)}.items():
            weights = []
            for expert in range(4):
                rows = []
                for part in parts:
                    width, inputs = (64, 96) if part == "down_proj" else (96, 64)
                    codes = rng.integers(0, 16, (inputs, width))
                    scales = rng.uniform(0.005, 0.02, (inputs // 32, width)).astype(np.float16)
                    index = (np.arange(inputs) // 32).astype(np.int32)
                    name = f"model.layers.{layer}.{parent}.experts.{expert}.{names[part]}"
                    tensors |= {
                        f"{name}.qweight": numpy_gptq.pack(codes, 4),
                        f"{name}.qzeros": numpy_gptq.pack(np.full(scales.shape, 7).T, 4).T.copy(),
                        f"{name}.scales": scales,
                        f"{name}.g_idx": index,
                    }
                    rows.append(((codes - 8) * scales.astype(np.float32)[index]).T)
                weights.append(np.concatenate(rows))
            dense[f"model.layers.{layer}.mlp.experts.{stack}"] = np.stack(weights).astype(np.float32)  # exact
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
    about = json.loads((out / "config.json").read_text())
    about["quantization_config"] = {"quant_method": "gptq", "bits": 4, "group_size": 32, "desc_act": False, "sym": True}
    (out / "config.json").write_text(json.dumps(about))
    return dense


@pytest.mark.parametrize("names", NAMES)
def test_single_experts_become_the_stacks_of_the_architecture(numpy_gptq, tmp_path, names):
    torch.manual_seed(0)
    model = MODELS["mixtral"]()
    dense = quantized_experts(numpy_gptq, tmp_path / "made", model, NAMES[names])
    loaded = load_model(tmp_path / "made", device="cpu", dtype="float32")
    for name, weight in dense.items():
        stack = stack_ops_for(loaded.model.get_submodule(name))
        assert stack.sizes == weight.shape
        for expert in range(4):
            np.testing.assert_array_equal(stack.read_expert(expert).numpy(), weight[expert])
        model.get_parameter(name).data = torch.from_numpy(weight)
    ids = torch.arange(3, 19)[None]
    with torch.no_grad():
        found = loaded.model.eval()(input_ids=ids, use_cache=False).logits
        right = model.eval()(input_ids=ids, use_cache=False).logits
    torch.testing.assert_close(found, right, rtol=1e-4, atol=1e-5)


def test_a_stack_of_which_an_expert_is_missing_has_no_place(numpy_gptq, tmp_path):
    torch.manual_seed(0)
    quantized_experts(numpy_gptq, tmp_path / "made", MODELS["mixtral"](), NAMES["now"])
    tensors = load_file(tmp_path / "made" / "model.safetensors")
    tensors = {n: t for n, t in tensors.items() if "layers.1.mlp.experts.2.up_proj" not in n}
    save_file(tensors, tmp_path / "made" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"layers\.1\.mlp\.experts\.0\.gate_proj', which the architecture lacks"):
        load_model(tmp_path / "made", device="cpu", dtype="float32")


# --------------------------------------------------------------------------------------- names and shapes


def test_parts_are_ordered_by_the_name_of_the_fused_layer():
    wanted = {"a.qkv_proj": (128, 64), "a.o_proj": (64, 64)}
    parts = {"a.v_proj": (32, 64), "a.k_proj": (32, 64), "a.q_proj": (64, 64), "a.o_proj": (64, 64)}
    assert place_layers(parts, wanted) == {
        "a.o_proj": ("a.o_proj",),
        "a.qkv_proj": ("a.q_proj", "a.k_proj", "a.v_proj"),
    }


@pytest.mark.parametrize(
    "parts",
    [
        {"a.gate_proj": (96, 64)},  # one is missing
        {"a.gate_proj": (96, 64), "a.up_proj": (64, 64)},  # too few outputs
        {"a.gate_proj": (96, 64), "a.up_proj": (96, 32)},  # other inputs
        {"a.gate_proj": (96, 64), "b.up_proj": (96, 64)},  # another module
        {"a.gate_proj": (96, 64), "a.up_proj": (96, 64), "a.more_proj": (96, 64)},
        {"a.experts.0.gate_proj": (96, 64), "a.experts.0.up_proj": (96, 64)},
    ],
)
def test_layers_that_do_not_make_up_a_fused_layer_have_no_place(parts):
    with pytest.raises(ModelError, match="which the architecture lacks"):
        place_layers(parts, {"a.gate_up_proj": (192, 64)})


# ------------------------------------------------------------------------------ refused before quantizing


def test_a_layer_without_a_place_is_refused_before_quantizing(fake, dense, rows, context, tmp_path):
    fake.set(layer="experts.0.down_proj")
    with pytest.raises(IncompatibleError, match="could not be loaded") as caught:
        GPTQQuantizer(GPTQOptions()).write(directory_source(dense, ref="small"), tmp_path, context(rows=rows))
    assert "a quantized layer 'model.layers.0.mlp.experts.0.down_proj', which the architecture lacks" in str(
        caught.value
    )
    assert fake.events("started")
    assert not fake.events("rows"), "nothing was quantized"


def test_a_weight_that_is_only_split_is_refused_before_quantizing(fake, dense, rows, context, tmp_path):
    fake.set(parameters=["model.layers.0.mlp.down_proj.weight", "model.layers.0.mlp.experts.0.up_proj.weight"])
    with pytest.raises(IncompatibleError, match="could not be loaded") as caught:
        GPTQQuantizer(GPTQOptions()).write(directory_source(dense, ref="small"), tmp_path, context(rows=rows))
    assert "a weight 'model.layers.0.mlp.experts.0.up_proj.weight', which the architecture lacks" in str(caught.value)
    assert not fake.events("rows"), "nothing was quantized"


@pytest.fixture
def mixture(dense, tmp_path):
    """Writes a mixture of `kind` with a tokenizer; returns its directory."""

    def write(kind):
        torch.manual_seed(0)
        source = tmp_path / kind
        MODELS[kind]().save_pretrained(source)
        for file in dense.glob("tokenizer*"):
            shutil.copy(file, source)
        return source

    return write


@pytest.mark.long
def test_gptqmodel_does_not_begin_with_experts_that_it_would_only_split(mixture, context, tmp_path):
    pytest.importorskip("gptqmodel_ext")
    out, said = tmp_path / "out", Said()
    out.mkdir()
    ctx = dataclasses.replace(context(rows=[[3 + i for i in range(32)]]), progress=said)
    with pytest.raises(IncompatibleError, match=r"experts\.0\.down_proj\.weight', which the architecture lacks"):
        GPTQQuantizer(GPTQOptions(group_size=32)).write(directory_source(mixture("granite"), ref="g"), out, ctx)
    assert not list(out.iterdir())
    assert not said.lines


@pytest.mark.long
def test_experts_are_quantized_by_gptqmodel_and_read_back(mixture, context, tmp_path):
    pytest.importorskip("gptqmodel_ext")
    source = directory_source(mixture("mixtral"), ref="mixtral")
    ctx = context(rows=[[3 + (7 * i + row) % 120 for i in range(64)] for row in range(8)])
    base = GPTQQuantizer(GPTQOptions(group_size=32)).load(source, ctx)
    dense = dict(source.load(dtype=torch.float32).named_parameters())
    stacks = {n: s for n, m in base.model.named_modules() if (s := stack_ops_for(m)) is not None}
    assert len(stacks) == 4
    for name, stack in stacks.items():
        for expert in range(4):
            weight = dense[name][expert]
            error = float((stack.read_expert(expert) - weight).norm() / weight.norm())
            assert 0.01 < error < 0.2  # rounding to 4 bits: about 0.1


@pytest.mark.long
def test_a_model_with_a_tied_head_is_quantized_by_gptqmodel(dense, rows, context, tmp_path):
    pytest.importorskip("gptqmodel_ext")
    assert json.loads((dense / "config.json").read_text())["tie_word_embeddings"]
    out = tmp_path / "out"
    out.mkdir()
    GPTQQuantizer(GPTQOptions(group_size=32)).write(directory_source(dense, ref="small"), out, context(rows=rows))
    loaded = load_model(out, device="cpu", dtype="float32")
    assert loaded.model.get_output_embeddings().weight is loaded.model.get_input_embeddings().weight


# ------------------------------------------------------------------------------------ format of zero points


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize(("stored", "label"), [("gptq_v2", "gptq"), ("gptq", "gptq_v2")])
def test_a_wrong_label_of_symmetric_zero_points_is_found_by_the_numbers(numpy_gptq, tmp_path, bits, stored, label):
    made = numpy_gptq.make_checkpoint(tmp_path / "made", bits=bits, layout=stored)
    right = numpy_gptq.weights_in(made)
    about = json.loads((made / "config.json").read_text())
    about["quantization_config"]["checkpoint_format"] = label
    (made / "config.json").write_text(json.dumps(about))
    said = Said()
    loaded = load_model(made, device="cpu", dtype="float32", progress=said)
    for name, weight in right.items():
        found = loaded.base.ops_for(loaded.model.get_submodule(name)).read_weight()
        np.testing.assert_array_equal(found.numpy(), weight)
    old, new = ("v1", "v2") if label == "gptq" else ("v2", "v1")
    assert said.lines == [
        f"note: made is labeled as format {old}, but its zero points are those of {new}; it is read as {new}"
    ]


@pytest.mark.parametrize(("layout", "sym", "named"), [("gptq", True, False), ("gptq_v2", False, False),
                                                      ("gptq", False, True)])  # fmt: skip
def test_only_a_label_that_numbers_cannot_confirm_is_named(numpy_gptq, tmp_path, layout, sym, named):
    made = numpy_gptq.make_checkpoint(tmp_path / "made", layout=layout, sym=sym)
    said = Said()
    loaded = load_model(made, device="cpu", dtype="float32", progress=said)
    assert ["cannot confirm" in line for line in said.lines] == [True] * named
    for name, weight in numpy_gptq.weights_in(made).items():
        found = loaded.base.ops_for(loaded.model.get_submodule(name)).read_weight()
        np.testing.assert_array_equal(found.numpy(), weight)
