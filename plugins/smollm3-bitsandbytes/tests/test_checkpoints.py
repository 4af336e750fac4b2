"""Quantized checkpoints, options that contradict them, skipped layers, fingerprints."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from smollm3_bitsandbytes import claims_4bit, claims_8bit
from smollm3_bitsandbytes.eight_bit import Bnb8bitQuantizer
from smollm3_bitsandbytes.four_bit import Bnb4bitQuantizer
from smollm3_bitsandbytes.options import Bnb4bitOptions, Bnb8bitOptions

from smollm3_finetune.api import ConfigError, IncompatibleError, directory_source, options_with

CASES = [
    (Bnb4bitQuantizer, Bnb4bitOptions(), Bnb4bitOptions()),
    (Bnb4bitQuantizer, Bnb4bitOptions(quant_type="fp4", double_quant=False), Bnb4bitOptions()),
    (Bnb4bitQuantizer, Bnb4bitOptions(skip_modules=("k_proj",)), Bnb4bitOptions()),
    (Bnb8bitQuantizer, Bnb8bitOptions(), Bnb8bitOptions()),
]


class Unreadable:
    """A source whose weights must not be read."""

    ref = "org/model"
    fingerprint = "f"

    def __init__(self, config):
        self.config = config

    def load(self, **kwargs):
        raise AssertionError("weights were read")


def weights(base):
    return {n: base.ops_for(m).read_weight() for n, m in base.model.named_modules() if base.ops_for(m)}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(("quantizer", "options", "defaults"), CASES)
def test_a_saved_quantized_checkpoint_is_claimed_and_loads_back_equal(
    source, context, ids, tmp_path, quantizer, options, defaults, dtype
):
    base = quantizer(options).load(source, context(dtype))
    with torch.no_grad():
        logits = base.model.eval()(ids).logits  # run a forward first: it moves the 8-bit codes
    base.model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    four = quantizer is Bnb4bitQuantizer
    assert (claims_4bit(config), claims_8bit(config)) == (four, not four)
    again = quantizer(defaults).load(directory_source(tmp_path, ref="saved"), context(dtype))
    assert not any(p.requires_grad for p in again.model.parameters())
    old, new = weights(base), weights(again)
    assert old.keys() == new.keys()
    assert all(torch.equal(old[n], new[n]) for n in old)
    with torch.no_grad():
        torch.testing.assert_close(again.model.eval()(ids).logits, logits, rtol=0, atol=0)


def test_the_options_of_a_checkpoint_may_be_repeated(source, context, tmp_path):
    options = Bnb4bitOptions(quant_type="fp4", double_quant=False, skip_modules=("k_proj",))
    Bnb4bitQuantizer(options).load(source, context()).model.save_pretrained(tmp_path)
    base = Bnb4bitQuantizer(options).load(directory_source(tmp_path, ref="saved"), context())
    assert len(weights(base)) == 4 * 6


def test_a_checkpoint_stored_in_bfloat16_trains_correctly_in_float32(source, context, tmp_path):
    """bitsandbytes would round the weight to bfloat16 in the backward only, because the checkpoint has that dtype."""
    Bnb4bitQuantizer(Bnb4bitOptions()).load(source, context("bfloat16")).model.save_pretrained(tmp_path)
    base = Bnb4bitQuantizer(Bnb4bitOptions()).load(directory_source(tmp_path, ref="saved"), context("float32"))
    layer = base.model.model.layers[0].mlp.down_proj
    weight = base.ops_for(layer).read_weight()
    x = torch.randn(4, layer.in_features, requires_grad=True)
    y = layer(x)
    y.backward(torch.ones_like(y))
    torch.testing.assert_close(y, x @ weight.T, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(x.grad, torch.ones_like(y) @ weight, rtol=1e-5, atol=1e-5)


def test_configs_of_full_precision_or_other_methods_are_not_claimed():
    for config in ({}, {"quantization_config": None}, {"quantization_config": {"quant_method": "gptq", "bits": 4}}):
        assert not claims_4bit(config)
        assert not claims_8bit(config)


FOUR = {"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}}
EIGHT = {"quantization_config": {"quant_method": "bitsandbytes", "load_in_8bit": True, "llm_int8_threshold": 6.0}}
GPTQ = {"quantization_config": {"quant_method": "gptq", "bits": 4}}


@pytest.mark.parametrize(
    ("quantizer", "config", "error", "text"),
    [
        (Bnb4bitQuantizer(Bnb4bitOptions()), GPTQ, IncompatibleError, "already quantized by gptq"),
        (Bnb8bitQuantizer(Bnb8bitOptions()), GPTQ, IncompatibleError, "already quantized by gptq"),
        (Bnb4bitQuantizer(Bnb4bitOptions()), EIGHT, IncompatibleError, "use --quant bnb-8bit"),
        (Bnb8bitQuantizer(Bnb8bitOptions()), FOUR, IncompatibleError, "use --quant bnb-4bit"),
        (
            Bnb4bitQuantizer(Bnb4bitOptions(quant_type="fp4")),
            FOUR,
            ConfigError,
            "quant_type is fp4, but the checkpoint has nf4",
        ),
        (
            Bnb4bitQuantizer(options_with(Bnb4bitOptions, double_quant=True)),
            FOUR,
            ConfigError,
            "double_quant is true, but the checkpoint has false",
        ),
        (
            Bnb8bitQuantizer(options_with(Bnb8bitOptions, threshold=6.0)),
            {"quantization_config": {**EIGHT["quantization_config"], "llm_int8_threshold": 4.0}},
            ConfigError,
            "threshold is 6.0, but the checkpoint has 4.0",
        ),
        (
            Bnb8bitQuantizer(Bnb8bitOptions(threshold=4.0)),
            EIGHT,
            ConfigError,
            "threshold is 4.0, but the checkpoint has 6.0",
        ),
        (
            Bnb8bitQuantizer(Bnb8bitOptions(skip_modules=("k_proj",))),
            EIGHT,
            ConfigError,
            "skip_modules is k_proj, but the checkpoint has none",
        ),
    ],
)
def test_contradictions_of_the_checkpoint_are_refused_before_weights_are_read(context, quantizer, config, error, text):
    with pytest.raises(error) as caught:
        quantizer.load(Unreadable(config), context())
    assert text in str(caught.value)


def test_a_misspelled_skip_module_is_refused_before_weights_are_read(source, context):
    unreadable = Unreadable(source.config)
    with pytest.raises(ConfigError, match="'k_porj', which matches no linear layer") as caught:
        Bnb4bitQuantizer(Bnb4bitOptions(skip_modules=("k_porj",))).load(unreadable, context())
    assert "k_proj" in caught.value.hint


@pytest.mark.parametrize(
    "quantizer",
    [
        Bnb4bitQuantizer(Bnb4bitOptions(skip_modules=("k_proj", "model.layers.0"))),
        Bnb8bitQuantizer(Bnb8bitOptions(skip_modules=("k_proj", "model.layers.0"))),
    ],
)
def test_skipped_layers_and_the_head_stay_dense(source, context, dense, quantizer):
    base = quantizer.load(source, context())
    quantized = {n for n, m in base.model.named_modules() if base.ops_for(m)}
    assert len(quantized) == 3 * 6
    assert not any(n.endswith("k_proj") for n in quantized)
    assert base.model.lm_head.weight is base.model.get_input_embeddings().weight
    assert torch.equal(
        base.model.model.layers[1].self_attn.k_proj.weight, dense.model.layers[1].self_attn.k_proj.weight
    )


def test_compute_dtype_is_used_and_does_not_change_the_fingerprint(source, context):
    base = Bnb4bitQuantizer(Bnb4bitOptions(compute_dtype="bfloat16")).load(source, context())
    layer = base.model.model.layers[0].self_attn.q_proj
    y = layer(torch.randn(2, layer.in_features))
    assert y.dtype == torch.float32
    assert torch.equal(y, y.to(torch.bfloat16).float())
    assert layer.compute_dtype == torch.bfloat16
    assert base.fingerprint == Bnb4bitQuantizer(Bnb4bitOptions()).load(source, context()).fingerprint


def test_the_fingerprint_changes_if_and_only_if_the_weights_do(source, context, tmp_path):
    def mark(quantizer, dtype="float32", of=source):
        return quantizer.load(of, context(dtype)).fingerprint

    marks = [
        mark(Bnb4bitQuantizer(Bnb4bitOptions())),
        mark(Bnb4bitQuantizer(Bnb4bitOptions(quant_type="fp4"))),
        mark(Bnb4bitQuantizer(Bnb4bitOptions(double_quant=False))),
        mark(Bnb4bitQuantizer(Bnb4bitOptions(skip_modules=("k_proj",)))),
        mark(Bnb4bitQuantizer(Bnb4bitOptions()), "bfloat16"),  # rounds a float32 checkpoint before it is quantized
        mark(Bnb8bitQuantizer(Bnb8bitOptions())),
        mark(Bnb4bitQuantizer(Bnb4bitOptions()), of=replace(source, known_fingerprint="another")),
    ]
    assert len(set(marks)) == len(marks)
    assert mark(Bnb4bitQuantizer(Bnb4bitOptions(quant_type="nf4", double_quant=True))) == marks[0]
    assert mark(Bnb8bitQuantizer(Bnb8bitOptions(threshold=0.0))) == marks[5]
    half = source.load(dtype=torch.bfloat16)
    half.save_pretrained(tmp_path)
    saved = directory_source(tmp_path, ref="half")
    assert mark(Bnb4bitQuantizer(Bnb4bitOptions()), of=saved) == mark(
        Bnb4bitQuantizer(Bnb4bitOptions()), "bfloat16", of=saved
    )
