"""Layers against a dequantization in NumPy; hqq's own behavior that they are held from; what is left dense."""

from __future__ import annotations

import copy
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hqq.core.quantize import BaseQuantizeConfig, HQQBackend, HQQLinear
from smollm3_hqq.layers import chosen
from smollm3_hqq.linear import Linear, ops_in
from smollm3_hqq.options import HQQOptions
from smollm3_hqq.quantizer import HQQQuantizer
from torch import nn

from smollm3_finetune.api import ConfigError, IncompatibleError
from smollm3_finetune.testing import context, small_source


def dense(out=96, features=128, bias=False, std=0.04):
    linear = nn.Linear(features, out, bias=bias)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in linear.parameters():
            parameter.normal_(0, std, generator=generator)
    return linear.requires_grad_(False)


def stock(linear, compute=torch.float32, **options):
    config = BaseQuantizeConfig(**{"nbits": 4, "group_size": 64, **options})
    return HQQLinear(copy.deepcopy(linear), config, compute_dtype=compute, device="cpu")


def ours(linear, **options):
    return Linear(copy.deepcopy(linear), HQQOptions(**options), "cpu")


def relative(a, b):
    return float((a.double() - b.double()).norm() / b.double().norm())


@pytest.fixture
def backend():
    before = HQQLinear.backend
    yield HQQLinear.set_backend
    HQQLinear.set_backend(before)


def unpacked(codes, bits, rows):
    """hqq's layout: parts of the rows beside each other in one number, the first part in the highest bits."""
    word, count = {8: (8, 1), 4: (8, 2), 2: (8, 4), 3: (30, 10)}[bits]
    parts = [(codes.astype(np.int64) >> (word - bits * (i + 1))) & (2**bits - 1) for i in range(count)]
    return np.concatenate(parts)[:rows]


@pytest.mark.parametrize("axis", [1, 0])
@pytest.mark.parametrize("bits", [8, 4, 3, 2])
def test_read_weight_is_code_less_zero_times_scale(bits, axis):
    linear = dense()
    layer = ours(linear, bits=bits, axis=axis, group_size=32)
    rows = 32 if axis == 0 else linear.weight.numel() // 32
    codes = unpacked(layer.W_q.numpy(), bits, rows)
    zero, scale = layer.meta["zero"].numpy(), layer.meta["scale"].numpy()
    assert zero.dtype == scale.dtype == np.float32
    right = ((codes - zero.astype(np.float64)) * scale).reshape(96, 128)
    found = ops_in(torch.float32)(layer).read_weight()
    np.testing.assert_allclose(found.numpy(), right, rtol=0, atol=1e-6)
    assert codes.max() == 2**bits - 1


@pytest.mark.parametrize("bits", [8, 4])
def test_scales_in_float32_are_nearer_than_hqqs_own_in_bfloat16(bits):
    linear = dense(1536, 576)
    own = relative(stock(linear, torch.bfloat16, nbits=bits).dequantize(), linear.weight)
    found = relative(ops_in(torch.bfloat16)(ours(linear, bits=bits)).read_weight(), linear.weight)
    assert found < own
    assert found < {8: 0.0055, 4: 0.0873}[bits]


def test_the_codes_do_not_depend_on_the_number_of_threads():
    linear, before = dense(192, 576), torch.get_num_threads()
    layers = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        layers.append(ours(linear))
    torch.set_num_threads(before)
    assert torch.equal(layers[0].W_q, layers[1].W_q)
    assert torch.equal(layers[0].meta["zero"], layers[1].meta["zero"])


def saved_for_backward(layer):
    shapes = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: shapes.append(tuple(t.shape)) or t, lambda t: t):
        layer(torch.randn(4, 128, requires_grad=True))
    return shapes


def test_a_backend_that_another_chose_for_the_process_does_not_reach_these_layers(backend):
    linear = dense()
    layer, other = ours(linear), stock(linear)
    backend(HQQBackend.PYTORCH_FORWARD)
    made_later = ours(linear)
    assert (128, 96) in saved_for_backward(other)  # hqq's own layers now keep a dense weight until the backward
    for each in (layer, made_later):
        assert saved_for_backward(each) == [(4, 128)]


def test_training_under_autocast_works_where_hqqs_own_layer_fails():
    linear = dense()
    layer, other = ours(linear), stock(linear)
    weight = ops_in(torch.float32)(layer).read_weight()
    x = torch.randn(3, 128, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        y, other_y = layer(x), other(x)
    assert y.dtype == torch.bfloat16
    (gradient,) = torch.autograd.grad(y.float().sum(), x)
    assert gradient.dtype == torch.float32
    assert relative(gradient, torch.ones(3, 96) @ weight) < 1e-2
    with pytest.raises(RuntimeError, match="same dtype"):
        torch.autograd.grad(other_y.float().sum(), x)


def test_moving_and_casting_a_model_leaves_the_weight_as_it_is():
    layer = ours(dense(bias=True))
    before = layer.dequantize()
    model = nn.Sequential(layer).to(torch.bfloat16)
    assert torch.equal(model[0].dequantize(), before)
    assert model[0].bias.dtype == torch.bfloat16
    model.to("meta")
    assert {layer.W_q.device.type, layer.meta["zero"].device.type, layer.meta["scale"].device.type} == {"meta"}


def test_nothing_is_left_of_inference_mode_and_the_bias_is_a_parameter():
    linear = dense(bias=True)
    assert stock(linear).meta["zero"].is_inference()
    layer = ours(linear)
    assert not any(t.is_inference() for t in (layer.W_q, layer.meta["zero"], layer.meta["scale"]))
    assert torch.equal(layer.bias, linear.bias)
    assert [n for n, _ in layer.named_parameters()] == ["W_q", "bias"]
    x = torch.randn(2, 3, 128)
    assert torch.equal(copy.deepcopy(layer)(x), layer(x))


def test_a_bias_that_is_trained_gets_its_gradient():
    layer = ours(dense(bias=True))
    layer.bias.requires_grad_(True)
    layer(torch.randn(2, 3, 128)).sum().backward()
    assert torch.equal(layer.bias.grad, torch.full((96,), 6.0))


class Unreadable:
    """The small model's source, whose weights must not be read."""

    ref, fingerprint = "org/model", "f"
    config = small_source().config

    def load(self, **kwargs):
        raise AssertionError("weights were read")


@pytest.mark.parametrize(
    ("options", "error", "says", "hint"),
    [
        (HQQOptions(skip_modules=("k_porj",)), ConfigError, "'k_porj'", "k_proj"),
        (HQQOptions(axis=0), ConfigError, "the 32 out_features of model.layers.0.self_attn.k_proj", "group_size=32"),
        (HQQOptions(skip_modules=("layers",)), IncompatibleError, "no linear layer to quantize", "--quant none"),
    ],
)
def test_what_does_not_fit_the_architecture_is_refused_before_weights(tmp_path, options, error, says, hint):
    with pytest.raises(error, match="hqq") as caught:
        HQQQuantizer(options).load(Unreadable(), context(tmp_path))
    assert says in str(caught.value)
    assert hint in caught.value.hint


def test_rows_that_cannot_be_packed_are_refused_where_hqq_fails_at_the_first_forward():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.odd = dense(3, 64)

        def get_output_embeddings(self):
            return None

    with pytest.raises(RuntimeError):
        stock(dense(3, 64))(torch.randn(1, 64))
    with pytest.raises(IncompatibleError, match="packs 2 rows of 4 bits into one, and odd has 3") as caught:
        chosen(Odd(), SimpleNamespace(ref="m"), HQQOptions())
    assert caught.value.hint == "--quant-opt skip_modules=odd, or --quant-opt bits=8"
    assert list(chosen(Odd(), SimpleNamespace(ref="m"), HQQOptions(bits=3))) == ["odd"]


def test_skipped_layers_and_the_head_stay_dense(tmp_path):
    options = HQQOptions(skip_modules=("k_proj", "layers.0"))
    base = HQQQuantizer(options).load(small_source(), context(tmp_path))
    quantized = {n for n, m in base.model.named_modules() if base.ops_for(m)}
    assert len(quantized) == 6
    assert all(n.startswith("model.layers.1.") and not n.endswith("k_proj") for n in quantized)
    assert base.model.lm_head.weight is base.model.get_input_embeddings().weight


def test_the_fingerprint_follows_what_decides_the_codes(tmp_path, monkeypatch):
    def mark(dtype="float32", source=None, **options):
        source = source or small_source()
        return HQQQuantizer(HQQOptions(**options)).load(source, context(tmp_path, dtype=dtype)).fingerprint

    plain = mark()
    assert mark("float64") == plain
    assert mark("bfloat16") != plain  # it rounds a float32 checkpoint before hqq sees it
    assert mark(skip_modules=("q_proj", "k_proj")) == mark(skip_modules=("k_proj", "q_proj")) != plain
    monkeypatch.setattr("smollm3_hqq.quantizer.version", lambda name: "0.2.9")
    assert mark() != plain


def test_adapters_may_add_to_the_output_in_place():
    layer = ours(dense())
    x = torch.randn(2, 3, 128, requires_grad=True)
    y = layer(x)
    y += 1
    y.sum().backward()
    assert x.grad is not None
