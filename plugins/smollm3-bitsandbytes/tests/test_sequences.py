"""Forward, gradient and `read_weight` equal a dense copy's at every step: evaluate, train, evaluate, save, train."""

from __future__ import annotations

import copy
import logging

import bitsandbytes as bnb
import pytest
import torch
from bitsandbytes import functional
from smollm3_bitsandbytes.eight_bit import Bnb8bitQuantizer
from smollm3_bitsandbytes.four_bit import Bnb4bitQuantizer
from smollm3_bitsandbytes.options import Bnb4bitOptions, Bnb8bitOptions

from smollm3_finetune.api import Purpose

CASES = {
    "nf4": (Bnb4bitQuantizer, Bnb4bitOptions()),
    "nf4-plain-scales": (Bnb4bitQuantizer, Bnb4bitOptions(double_quant=False)),
    "fp4": (Bnb4bitQuantizer, Bnb4bitOptions(quant_type="fp4")),
    "int8": (Bnb8bitQuantizer, Bnb8bitOptions()),
    "int8-all-rounded": (Bnb8bitQuantizer, Bnb8bitOptions(threshold=0.0)),
}
STEPS = ("evaluate", "train", "evaluate", "save", "train")


def relative(a, b):
    return ((a.double() - b.double()).norm() / b.double().norm()).item()


def dense_copy(base):
    """The base with every quantized layer replaced by `nn.Linear(read_weight())`."""
    model = copy.deepcopy(base.model)
    for name, layer in list(base.model.named_modules()):
        if (ops := base.ops_for(layer)) is not None:
            linear = torch.nn.Linear(layer.in_features, layer.out_features, bias=False)
            linear.weight = torch.nn.Parameter(ops.read_weight().to(base.model.dtype), requires_grad=False)
            model.set_submodule(name, linear)
    return model


def through(model, embeddings):
    """Logits, and the gradient at the embeddings of a fixed linear combination of the logits."""
    x = embeddings.clone().requires_grad_()
    logits = model(inputs_embeds=x, use_cache=False).logits
    factors = torch.linspace(-1, 1, logits.numel(), dtype=logits.dtype).view_as(logits)
    (logits * factors).sum().backward()
    return logits.detach(), x.grad


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("case", CASES)
def test_every_layer_equals_its_dense_copy_at_every_step(source, context, tmp_path, case, dtype):
    quantizer, options = CASES[case]
    base = quantizer(options).load(source, context(dtype))
    torch_dtype = getattr(torch, dtype)
    layers = [layer for layer in base.model.modules() if base.ops_for(layer)]
    before = [base.ops_for(layer).read_weight() for layer in layers]
    torch.manual_seed(2)
    for step in STEPS:
        if step == "save":
            base.model.save_pretrained(tmp_path / "saved")
            continue
        base.model.train(step == "train")
        for layer, weight in zip(layers, before, strict=True):
            ops = base.ops_for(layer)
            x = torch.randn(2, 5, layer.in_features, dtype=torch_dtype, requires_grad=True)
            y = layer(x)
            factors = torch.randn_like(y)
            y.backward(factors)
            w = weight.to(torch_dtype)
            assert ops.forward_rtol == 0
            assert relative(y, x.detach() @ w.T) <= 1e-5
            assert relative(x.grad, factors @ w) <= 1e-5
            with torch.no_grad():
                layer(x.detach())
            assert torch.equal(ops.read_weight(), weight)


@pytest.mark.parametrize("case", CASES)
def test_the_whole_model_equals_its_dense_copy_at_every_step(source, context, ids, tmp_path, case):
    quantizer, options = CASES[case]
    base = quantizer(options).load(source, context())
    twin = dense_copy(base).eval()
    embeddings = base.model.get_input_embeddings()(ids).detach()
    logits, gradient = through(twin, embeddings)
    for step in STEPS:
        if step == "save":
            base.model.save_pretrained(tmp_path / "saved")
            continue
        base.model.train(step == "train")
        with torch.no_grad():
            base.model(ids)
        got_logits, got_gradient = through(base.model, embeddings)
        assert relative(got_logits, logits) <= 1e-5
        assert relative(got_gradient, gradient) <= 1e-5
    base.model.to("cpu")  # a trainer does this after the codes have moved to the layer's state
    assert relative(through(base.model.train(), embeddings)[1], gradient) <= 1e-5


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float64"])
def test_the_base_is_frozen_and_unquantized_tensors_are_in_the_run_dtype(source, context, case, dtype):
    quantizer, options = CASES[case]
    base = quantizer(options).load(source, context(dtype))
    assert not any(p.requires_grad for p in base.model.parameters())
    assert base.model.model.norm.weight.dtype == getattr(torch, dtype)
    assert base.model.get_input_embeddings().weight.dtype == getattr(torch, dtype)
    assert base.model.lm_head.weight is base.model.get_input_embeddings().weight  # still tied


@pytest.mark.parametrize("purpose", list(Purpose))
def test_a_cpu_with_avx512_bf16_does_not_repack_a_loaded_layer(source, context, ids, monkeypatch, purpose):
    monkeypatch.setattr("bitsandbytes.nn.modules.has_avx512bf16", lambda: True)
    base = Bnb4bitQuantizer(Bnb4bitOptions()).load(source, context(purpose=purpose))
    layer = base.model.model.layers[0].self_attn.q_proj
    weight = base.ops_for(layer).read_weight()
    base.model.eval()
    with torch.no_grad():
        base.model(ids)
    assert not getattr(layer.weight.quant_state, "packing_format_for_cpu", False)
    assert torch.equal(base.ops_for(layer).read_weight(), weight)
    base.model.train()
    x = torch.randn(3, layer.in_features, requires_grad=True)
    layer(x).sum().backward()
    assert relative(x.grad, torch.ones(3, layer.out_features) @ weight) <= 1e-5


def test_on_such_a_cpu_the_stock_layer_is_repacked(monkeypatch):
    """Shows that the test above can fail: the stock layer is repacked permanently."""
    monkeypatch.setattr("bitsandbytes.nn.modules.has_avx512bf16", lambda: True)
    layer = bnb.nn.Linear4bit(128, 128, bias=False, compute_dtype=torch.float32, quant_type="nf4").to("cpu").eval()
    seen = []
    monkeypatch.setattr(functional, "gemv_4bit", lambda x, *a, **k: seen.append(1) or x.new_zeros(2, 128))
    with torch.no_grad():
        layer(torch.randn(2, layer.in_features))
    assert seen
    assert layer.weight.quant_state.packing_format_for_cpu


def test_without_the_state_8bit_evaluation_would_compute_another_function(source, context):
    """Shows that the tests above can fail: the stock layer rounds its input to 8 bits in eval mode."""
    base = Bnb8bitQuantizer(Bnb8bitOptions()).load(source, context())
    layer = base.model.model.layers[0].mlp.down_proj
    weight = base.ops_for(layer).read_weight()
    layer.state.__class__ = bnb.MatmulLtState
    x = torch.randn(4, layer.in_features, generator=torch.Generator().manual_seed(3))
    assert 1e-3 < relative(layer.eval()(x), x @ weight.T) < 5e-2
    assert relative(layer.train()(x), x @ weight.T) <= 1e-5


def test_an_8bit_layer_survives_a_deep_copy(source, context):
    base = Bnb8bitQuantizer(Bnb8bitOptions()).load(source, context())
    layer = base.model.model.layers[0].mlp.down_proj
    x = torch.randn(4, layer.in_features)
    before = copy.deepcopy(layer).eval()
    y = layer.eval()(x)
    after = copy.deepcopy(layer)
    assert torch.equal(before(x), y)
    assert torch.equal(after(x), y)
    assert torch.equal(base.ops_for(after).read_weight(), base.ops_for(layer).read_weight())


def test_8bit_layers_log_no_cast_message(source, context, caplog):
    base = Bnb8bitQuantizer(Bnb8bitOptions()).load(source, context())
    layer = base.model.model.layers[0].mlp.down_proj
    layer.state.__class__ = bnb.MatmulLtState  # the code path of a GPU
    with caplog.at_level(logging.WARNING), torch.no_grad():
        layer.eval()(torch.randn(2, layer.in_features))
    assert "inputs will be cast" not in caplog.text
