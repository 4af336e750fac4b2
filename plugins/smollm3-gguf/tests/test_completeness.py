"""What a file states is used or refused: metadata, tensors, and the logits of the loaded model."""

from __future__ import annotations

import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
import torch
from smollm3_gguf.architectures import implied_config
from smollm3_gguf.files import check_file, find_file
from smollm3_gguf.loader import GgufLoader, unloaded_blocks
from smollm3_gguf.options import GgufOptions
from transformers import AutoConfig, AutoModelForCausalLM

from smollm3_finetune.api import ModelError

ROPE = {"rope_type": "default", "rope_theta": 10000.0}
SIZES = {
    "vocab_size": 64,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
KEYS = {
    "context_length": 128,
    "embedding_length": 64,
    "feed_forward_length": 96,
    "block_count": 2,
    "attention.head_count": 4,
    "attention.head_count_kv": 2,
    "rope.freq_base": 10000.0,
    "rope.dimension_count": 16,
}
PLAIN = {"rope.freq_base": None, "rope.dimension_count": None, "attention.head_count_kv": 4}  # without RoPE and groups
RMS = {"attention.layer_norm_rms_epsilon": 1e-5}
NORM = {"attention.layer_norm_epsilon": 1e-5}
IDS = torch.arange(100)[None] * 7 % 64
"""100 positions, more than the original context of the scaled models."""


def reference(kind, **values):
    """A random transformers model, with biases and norms that are not at their initial values."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **(SIZES | values))
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager", experts_implementation="eager").eval()
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.copy_(torch.randn_like(p) * (0.2 if p.ndim > 1 else 0.3) + (1.0 if "norm" in name and p.ndim == 1 else 0))
    return model


def logits(model):
    with torch.no_grad():
        return model.to(torch.float64)(input_ids=IDS).logits


def assert_equal(path, model, context):
    """The loaded model computes the same logits in float64; returns its config."""
    loaded = (
        GgufLoader(GgufOptions())
        .open(str(path), context())
        .load(dtype=torch.float32, attn_implementation="eager", experts_implementation="eager")
    )
    expected, found = logits(model), logits(loaded)
    assert (found - expected).abs().max() <= 1e-6 * expected.abs().max()
    return loaded.config


CASES = {
    "llama": ("llama", "llama", {"rms_norm_eps": 1e-5}, RMS),
    "llama-bias": ("llama", "llama", {"rms_norm_eps": 1e-5, "attention_bias": True, "mlp_bias": True}, RMS),
    "llama-head": (
        "llama",
        "llama",
        {"rms_norm_eps": 1e-5, "head_dim": 32},
        RMS | {"attention.key_length": 32, "attention.value_length": 32, "rope.dimension_count": 32},
    ),
    "llama-linear": (
        "llama",
        "llama",
        {"rms_norm_eps": 1e-5, "rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 10000.0}},
        RMS | {"rope.scaling.type": "linear", "rope.scaling.factor": 4.0},
    ),
    "qwen2-yarn": (
        "qwen2",
        "qwen2",
        {
            "rms_norm_eps": 1e-5,
            "rope_parameters": {
                "rope_type": "yarn",
                "factor": 4.0,
                "rope_theta": 10000.0,
                "original_max_position_embeddings": 32,
            },
        },
        RMS
        | {
            "rope.scaling.type": "yarn",
            "rope.scaling.factor": 4.0,
            "rope.scaling.original_context_length": 32,
        },
    ),
    "qwen2": ("qwen2", "qwen2", {"rms_norm_eps": 1e-5}, RMS),
    "qwen3": ("qwen3", "qwen3", {"rms_norm_eps": 1e-5, "head_dim": 16}, RMS),
    "qwen2moe": (
        "qwen2moe",
        "qwen2_moe",
        {
            "rms_norm_eps": 1e-5,
            "moe_intermediate_size": 32,
            "shared_expert_intermediate_size": 48,
            "num_experts": 4,
            "num_experts_per_tok": 2,
        },
        RMS
        | {
            "expert_count": 4,
            "expert_used_count": 2,
            "expert_feed_forward_length": 32,
            "expert_shared_feed_forward_length": 48,
        },
    ),
    "qwen3moe": (
        "qwen3moe",
        "qwen3_moe",
        {
            "rms_norm_eps": 1e-5,
            "head_dim": 16,
            "moe_intermediate_size": 32,
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "norm_topk_prob": True,
        },
        RMS | {"expert_count": 4, "expert_used_count": 2, "expert_feed_forward_length": 32},
    ),
    "starcoder2": (
        "starcoder2",
        "starcoder2",
        {"norm_epsilon": 1e-5, "sliding_window": 16, "rope_parameters": ROPE | {"rope_theta": 50000.0}},
        NORM | {"rope.freq_base": 50000.0, "attention.sliding_window": 16},
    ),
    "phi3": (
        "phi3",
        "phi3",
        {"rms_norm_eps": 1e-5, "sliding_window": 16, "rope_parameters": ROPE | {"partial_rotary_factor": 0.75}},
        RMS | {"rope.dimension_count": 12, "attention.sliding_window": 16},
    ),
    "stablelm": (
        "stablelm",
        "stablelm",
        {"layer_norm_eps": 1e-5, "use_qkv_bias": True, "rope_parameters": ROPE | {"partial_rotary_factor": 0.5}},
        NORM | {"rope.dimension_count": 8, "use_parallel_residual": False},
    ),
    "nemotron": (
        "nemotron",
        "nemotron",
        {"norm_eps": 1e-4, "head_dim": 16, "rope_parameters": ROPE | {"partial_rotary_factor": 0.25}},
        {"attention.layer_norm_epsilon": 1e-4, "rope.dimension_count": 4},
    ),
    "gemma2": (
        "gemma2",
        "gemma2",
        {
            "head_dim": 16,
            "query_pre_attn_scalar": 16,
            "rms_norm_eps": 1e-5,
            "sliding_window": 16,
            "attn_logit_softcapping": 2.0,
            "final_logit_softcapping": 3.0,
            "tie_word_embeddings": True,
        },
        RMS
        | {
            "attention.key_length": 16,
            "attention.value_length": 16,
            "attention.sliding_window": 16,
            "attn_logit_softcapping": 2.0,
            "final_logit_softcapping": 3.0,
        },
    ),
    "gemma3": (
        "gemma3",
        "gemma3_text",
        {
            "num_hidden_layers": 6,
            "head_dim": 16,
            "query_pre_attn_scalar": 16,
            "rms_norm_eps": 1e-5,
            "sliding_window": 16,
            "tie_word_embeddings": True,
            "rope_parameters": {
                "sliding_attention": ROPE,
                "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1000000.0},
            },
        },
        RMS
        | {
            "block_count": 6,
            "attention.key_length": 16,
            "attention.value_length": 16,
            "attention.sliding_window": 16,
            "rope.freq_base": 1000000.0,
            "rope.scaling.type": "linear",
            "rope.scaling.factor": 8.0,
        },
    ),
    "bloom": (
        "bloom",
        "bloom",
        {"layer_norm_epsilon": 1e-5, "tie_word_embeddings": True},
        NORM | PLAIN | {"feed_forward_length": 256},
    ),
    "gpt2": ("gpt2", "gpt2", {"layer_norm_epsilon": 1e-5, "n_inner": 96}, NORM | PLAIN),
    "mamba": (
        "mamba",
        "mamba",
        {"layer_norm_epsilon": 1e-5, "intermediate_size": 128, "time_step_rank": 4},
        RMS
        | PLAIN
        | {
            "feed_forward_length": 0,
            "attention.head_count": 0,
            "attention.head_count_kv": 0,
            "ssm.conv_kernel": 4,
            "ssm.state_size": 16,
            "ssm.inner_size": 128,
            "ssm.time_step_rank": 4,
        },
    ),
    "minimax-m2": (
        "minimax-m2",
        "minimax_m2",
        {
            "rms_norm_eps": 1e-5,
            "head_dim": 16,
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "rope_parameters": ROPE | {"partial_rotary_factor": 0.5},
        },
        RMS
        | {
            "attention.key_length": 16,
            "attention.value_length": 16,
            "rope.dimension_count": 8,
            "expert_count": 4,
            "expert_used_count": 2,
            "expert_feed_forward_length": 96,
            "expert_gating_func": 2,
        },
    ),
    "lfm2": (
        "lfm2",
        "lfm2",
        {
            "norm_eps": 1e-5,
            "num_hidden_layers": 2,
            "layer_types": ["conv", "full_attention"],
            "block_auto_adjust_ff_dim": False,
            "rope_parameters": ROPE,
            "tie_word_embeddings": True,
        },
        RMS | {"attention.head_count_kv": [0, 2], "shortconv.l_cache": 3},
    ),
    "falcon": (
        "falcon",
        "falcon",
        {"layer_norm_epsilon": 1e-5, "ffn_hidden_size": 256},
        NORM | {"feed_forward_length": 256, "attention.head_count_kv": 1},
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_the_loaded_model_computes_the_same_logits(tiny_gguf, context, tmp_path, case):
    architecture, kind, values, keys = CASES[case]
    model = reference(kind, **values)
    tiny_gguf.write_model(tmp_path / "m.gguf", architecture, model, KEYS | keys)
    assert_equal(tmp_path / "m.gguf", model, context)


def llama(tiny_gguf, path, *, kind="llama", keys=None, tensors=None, without=(), **values):
    """Writes a LLaMA file; returns the transformers model with the same weights."""
    model = reference(kind, rms_norm_eps=1e-5, **values)
    tiny_gguf.write_model(path, kind, model, KEYS | RMS | (keys or {}), tensors=tensors, without=without)
    return model


def llama3_factors(scaling, head=16, theta=10000.0):
    """`rope_freqs.weight` as convert_hf_to_gguf.py (LlamaModel.generate_extra_tensors) computes it."""
    inverse = 1.0 / theta ** (np.arange(0, head, 2) / head)
    context, low, high = scaling["original_max_position_embeddings"], 1.0, 4.0
    factors = []
    for frequency in inverse:
        length = 2 * np.pi / frequency
        smooth = (context / length - low) / (high - low)
        between = 1 / ((1 - smooth) / scaling["factor"] + smooth)
        factors.append(1 if length < context / high else scaling["factor"] if length > context / low else between)
    return np.array(factors, dtype=np.float32)


def llama3(context):
    rope = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    return rope | {"original_max_position_embeddings": context, "rope_theta": 10000.0}


@pytest.mark.parametrize("theta", [10000.0, 500000.0])
def test_the_rope_factors_of_llama3_are_its_scaling(tiny_gguf, context, tmp_path, theta):
    rope = llama3(8192) | {"rope_theta": theta}
    model = llama(
        tiny_gguf,
        tmp_path / "m.gguf",
        keys={"rope.freq_base": theta, "context_length": 131072},
        tensors={"rope_freqs.weight": llama3_factors(rope, theta=theta)},
        rope_parameters=rope,
    )
    config = assert_equal(tmp_path / "m.gguf", model, context)
    assert config.rope_parameters == rope


def test_other_rope_factors_are_kept_as_they_are(tiny_gguf, context, tmp_path):
    model = llama(
        tiny_gguf,
        tmp_path / "m.gguf",
        tensors={"rope_freqs.weight": llama3_factors(llama3(50))},
        rope_parameters=llama3(50),
    )
    config = assert_equal(tmp_path / "m.gguf", model, context)
    assert config.rope_parameters["rope_type"] == "longrope"


def test_the_two_rope_factors_of_phi3_are_its_scaling(tiny_gguf, context, tmp_path):
    short, long = np.linspace(1, 2, 8, dtype=np.float32), np.linspace(1, 9, 8, dtype=np.float32)
    for original in (64, 512):  # the text is longer than the first, so the factors `long` apply
        rope = {"rope_type": "longrope", "short_factor": short.tolist(), "long_factor": long.tolist()}
        rope |= {"factor": 1024 / original, "attention_factor": 1.25, "rope_theta": 10000.0}
        model = llama(
            tiny_gguf,
            tmp_path / "m.gguf",
            kind="phi3",
            keys={
                "context_length": 1024,
                "rope.scaling.original_context_length": original,
                "rope.scaling.attn_factor": 1.25,
            },
            tensors={"rope_factors_short.weight": short, "rope_factors_long.weight": long},
            rope_parameters=rope | {"original_max_position_embeddings": original},
            original_max_position_embeddings=original,
            max_position_embeddings=1024,
        )
        assert_equal(tmp_path / "m.gguf", model, context)


def test_biases_of_some_layers_leave_those_of_the_others_zero(tiny_gguf, context, tmp_path):
    model = reference("llama", rms_norm_eps=1e-5, attention_bias=True)
    for layer in model.model.layers:
        layer.self_attn.o_proj.bias.data.zero_()
    without = tuple(f"blk.{i}.attn_output.bias" for i in range(2))
    tiny_gguf.write_model(tmp_path / "m.gguf", "llama", model, KEYS | RMS, without=without)
    assert_equal(tmp_path / "m.gguf", model, context)


def refusal(path, context):
    ctx = context()
    with pytest.raises(ModelError) as caught:
        GgufLoader(GgufOptions()).open(str(path), ctx).load()
    assert not list(ctx.cache.root.glob("gguf/*/config.json"))
    return str(caught.value)


def test_tensors_without_a_place_are_refused_by_name(tiny_gguf, context, tmp_path):
    extra = {"blk.0.attn_q_norm.weight": np.ones(16), "blk.1.attn_q_norm.weight": np.ones(16)}
    llama(tiny_gguf, tmp_path / "m.gguf", tensors=extra)
    text = refusal(tmp_path / "m.gguf", context)
    assert "has 2 tensors that have no place in transformers' model llama: blk.0.attn_q_norm.weight, blk.1." in text


@pytest.mark.parametrize(("kind", "bias"), [("qwen2", "blk.0.attn_output.bias"), ("llama", "blk.0.attn_norm.bias")])
def test_biases_that_the_model_cannot_have_are_refused(tiny_gguf, context, tmp_path, kind, bias):
    llama(tiny_gguf, tmp_path / "m.gguf", kind=kind, tensors={bias: np.ones(64)})
    assert f"no place in transformers' model {kind}: {bias}" in refusal(tmp_path / "m.gguf", context)


@pytest.mark.parametrize("name", ["blk.1.ffn_gate.weight", "output_norm.weight", "token_embd.weight"])
def test_missing_tensors_are_refused_by_name(tiny_gguf, context, tmp_path, name):
    llama(tiny_gguf, tmp_path / "m.gguf", without=(name,))
    assert "lacks 1 of the model's weights: model." in refusal(tmp_path / "m.gguf", context)


def test_half_of_a_fused_weight_is_refused(tiny_gguf, context, tmp_path):
    architecture, kind, values, keys = CASES["qwen3moe"]
    model = reference(kind, **values)
    without = ("blk.0.ffn_up_exps.weight",)
    tiny_gguf.write_model(tmp_path / "m.gguf", architecture, model, KEYS | keys, without=without)
    assert "lacks 1 of the model's weights: model.layers.0.mlp.experts" in refusal(tmp_path / "m.gguf", context)


def test_a_file_without_output_weight_has_tied_embeddings(tiny_gguf, context, tmp_path):
    model = llama(tiny_gguf, tmp_path / "m.gguf", tie_word_embeddings=True)
    assert assert_equal(tmp_path / "m.gguf", model, context).tie_word_embeddings


@pytest.mark.parametrize(
    ("kind", "key", "value"),
    [
        ("llama", "logit_scale", 0.5),
        ("llama", "attention.sliding_window", 16),
        ("llama", "expert_count", 8),
        ("llama", "final_logit_softcapping", 30.0),
        ("llama", "attention.scale", 0.5),
        ("llama", "attention.value_length", 8),
        ("llama", "attention.causal", False),
        ("llama", "rope.dimension_count", 8),
        ("llama", "rope.scaling.type", "ntk"),
        ("llama", "rope.scaling.attn_factor", 1.5),
        ("llama", "a_key.of.the_future", 1),
        ("qwen2", "attention.sliding_window", 16),
        ("qwen3", "attention.sliding_window", 16),
    ],
)
def test_metadata_that_the_model_cannot_use_are_refused_when_the_file_is_opened(
    tiny_gguf, context, tmp_path, kind, key, value
):
    keys = KEYS | RMS | ({"attention.key_length": 16} if kind == "qwen3" else {})
    tiny_gguf.write_model(tmp_path / "m.gguf", kind, reference(kind), keys | {key: value})
    with pytest.raises(ModelError) as caught:
        GgufLoader(GgufOptions()).open(str(tmp_path / "m.gguf"), context())
    shown = f"'{value}'" if isinstance(value, str) else value
    assert f"states {kind}.{key} = {shown}, which transformers' model {kind} cannot use" in str(caught.value)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("logit_scale", 1.0),
        ("attention.sliding_window", 0),
        ("expert_count", 0),
        ("attention.scale", 0.25),
        ("attention.causal", True),
        ("rope.scaling.type", "none"),
        ("rope.scaling.factor", 1.0),
        ("attention.value_length", 16),
        ("tensor_data_layout", "Meta AI original pth"),
    ],
)
def test_metadata_without_effect_are_accepted(tiny_gguf, context, tmp_path, key, value):
    tiny_gguf.write_model(tmp_path / "m.gguf", "llama", reference("llama"), KEYS | RMS | {key: value})
    config = GgufLoader(GgufOptions()).open(str(tmp_path / "m.gguf"), context()).config
    assert config["rope_parameters"] == ROPE


def test_metadata_that_transformers_translation_leaves_out_are_refused(tiny_gguf, context, tmp_path):
    architecture, kind, values, keys = CASES["lfm2"]
    keys = KEYS | keys | {"rope.scaling.type": "yarn", "rope.scaling.factor": 4.0}
    tiny_gguf.write_model(tmp_path / "m.gguf", architecture, reference(kind, **values), keys)
    with pytest.raises(
        ModelError, match=r"states lfm2\.rope\.scaling\.type = 'yarn', lfm2\.rope\.scaling\.factor = 4\.0"
    ):
        GgufLoader(GgufOptions()).open(str(tmp_path / "m.gguf"), context())


@pytest.mark.parametrize("architecture", ["llama", "smollm3", "gemma2"])
@pytest.mark.parametrize("further", [0, 39_999_998])
def test_more_blocks_than_tensors_are_refused_before_memory_is_used(tiny_gguf, tmp_path, architecture, further):
    tiny_gguf.write(tmp_path / "m.gguf", architecture=architecture)
    header = check_file(find_file(str(tmp_path / "m.gguf"), None))
    counts = {f"{architecture}.block_count": 40_000_000, f"{architecture}.nextn_predict_layers": further}
    hostile = replace(header, metadata={**header.metadata, **counts})
    tracemalloc.start()
    with pytest.raises(ModelError, match="states 40000000 blocks, but has the tensors of 2"):
        implied_config(hostile, "float32", "m.gguf")
    assert tracemalloc.get_traced_memory()[1] < 50e6
    tracemalloc.stop()


def test_a_block_that_is_not_loaded_is_named(tiny_gguf, context, tmp_path):
    tiny_gguf.write_model(tmp_path / "m.gguf", "llama", reference("llama"), KEYS | RMS | {"nextn_predict_layers": 0})
    ctx = context()
    GgufLoader(GgufOptions()).open(str(tmp_path / "m.gguf"), ctx)
    assert ctx.progress.said == []
    header = check_file(find_file(str(tmp_path / "m.gguf"), None))
    metadata = {**header.metadata, "llama.nextn_predict_layers": 1}
    assert "1 block for the prediction of further tokens, which is not loaded" in unloaded_blocks(
        "x.gguf", replace(header, metadata=metadata)
    )


@pytest.mark.parametrize("architecture", ["gpt-oss", "deci", "gemma4"])
def test_architectures_that_transformers_reads_only_in_part_are_refused(tiny_gguf, context, tmp_path, architecture):
    tiny_gguf.write(tmp_path / "m.gguf", architecture=architecture)
    with pytest.raises(ModelError, match=f"{architecture}, which transformers cannot read completely from GGUF"):
        GgufLoader(GgufOptions()).open(str(tmp_path / "m.gguf"), context())


def test_falcon_with_grouped_heads_is_refused(tiny_gguf, context, tmp_path):
    architecture, kind, values, keys = CASES["falcon"]
    keys = KEYS | keys | {"attention.head_count_kv": 2}
    tiny_gguf.write_model(tmp_path / "m.gguf", architecture, reference(kind, **values), keys)
    with pytest.raises(ModelError, match=r"states falcon\.attention\.head_count_kv = 2"):
        GgufLoader(GgufOptions()).open(str(tmp_path / "m.gguf"), context())


def test_layers_with_different_widths_are_refused(tiny_gguf, context, tmp_path):
    keys = KEYS | RMS | {"feed_forward_length": [96, 128]}
    tiny_gguf.write_model(tmp_path / "m.gguf", "llama", reference("llama"), keys)
    with pytest.raises(ModelError, match=r"states llama\.feed_forward_length = \[96, 128\]"):
        GgufLoader(GgufOptions()).open(str(tmp_path / "m.gguf"), context())


def test_a_missing_key_is_named(tiny_gguf, context, tmp_path):
    keys = KEYS | RMS | {"embedding_length": None}
    tiny_gguf.write_model(tmp_path / "m.gguf", "llama", reference("llama"), keys)
    with pytest.raises(ModelError, match=r"lacks the key 'llama\.embedding_length'"):
        GgufLoader(GgufOptions()).open(str(tmp_path / "m.gguf"), context())
