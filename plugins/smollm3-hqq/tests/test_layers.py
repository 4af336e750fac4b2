"""Layers against a dequantization in NumPy, and hqq's own behavior from which they differ."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from hqq.core.quantize import BaseQuantizeConfig, HQQBackend, HQQLinear
from smollm3_hqq.linear import Linear
from smollm3_hqq.options import HQQOptions
from smollm3_hqq.quantizer import HQQQuantizer
from torch import nn

from smollm3_finetune.api import ConfigError, IncompatibleError, ops_for_layers
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


def read(layer, dtype=torch.float32):
    return ops_for_layers(Linear, Linear.dequantize, dtype)(layer).read_weight()


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
    codes = unpacked(layer.codes.numpy(), bits, rows)
    zero, scale = layer.zero.numpy(), layer.scale.numpy()
    assert zero.dtype == scale.dtype == np.float32
    right = ((codes - zero.astype(np.float64)) * scale).reshape(96, 128)
    found = read(layer)
    np.testing.assert_allclose(found.numpy(), right, rtol=0, atol=1e-6)
    assert codes.max() == 2**bits - 1


@pytest.mark.parametrize("bits", [8, 4])
def test_scales_in_float32_are_nearer_than_hqqs_own_in_bfloat16(bits):
    linear = dense(1536, 576)
    own = relative(stock(linear, torch.bfloat16, nbits=bits).dequantize(), linear.weight)
    found = relative(read(ours(linear, bits=bits), torch.bfloat16), linear.weight)
    assert found < own
    assert found < {8: 0.0055, 4: 0.0873}[bits]


def test_the_codes_do_not_depend_on_the_number_of_threads():
    linear, before = dense(192, 576), torch.get_num_threads()
    layers = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        layers.append(ours(linear))
    torch.set_num_threads(before)
    assert torch.equal(layers[0].codes, layers[1].codes)
    assert torch.equal(layers[0].zero, layers[1].zero)


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
        assert saved_for_backward(each) == []


def test_hqqs_own_layer_cannot_be_trained_under_autocast():
    x = torch.randn(3, 128, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        y = stock(dense())(x)
    with pytest.raises(RuntimeError, match="same dtype"):
        torch.autograd.grad(y.float().sum(), x)


def test_moving_and_casting_a_model_leaves_the_weight_as_it_is():
    layer = ours(dense(bias=True))
    before = layer.dequantize()
    model = nn.Sequential(layer).to(torch.bfloat16)
    assert torch.equal(model[0].dequantize(), before)
    assert model[0].bias.dtype == torch.bfloat16
    model.to("meta")
    assert {layer.codes.device.type, layer.zero.device.type, layer.scale.device.type} == {"meta"}


def test_nothing_is_left_of_inference_mode_and_the_bias_is_a_parameter():
    linear = dense(bias=True)
    assert stock(linear).meta["zero"].is_inference()
    layer = ours(linear)
    assert not any(t.is_inference() for t in (layer.codes, layer.zero, layer.scale))
    assert torch.equal(layer.bias, linear.bias)
    assert [n for n, _ in layer.named_parameters()] == ["frozen_codes", "frozen_scale", "frozen_zero", "bias"]
    x = torch.randn(2, 3, 128)
    assert torch.equal(copy.deepcopy(layer)(x), layer(x))


def test_groups_along_the_outputs_must_divide_them(tmp_path):
    with pytest.raises(ConfigError, match=r"hqq: .* the 32 out_features of model.layers.0.self_attn.k_proj") as caught:
        HQQQuantizer(HQQOptions(axis=0)).load(small_source(), context(tmp_path))
    assert caught.value.hint == "--quant-opt group_size=32"


def test_rows_that_cannot_be_packed_are_refused_where_hqq_fails_at_the_first_forward():
    with pytest.raises(RuntimeError):
        stock(dense(3, 64))(torch.randn(1, 64))
    with pytest.raises(IncompatibleError, match="packs 2 rows of 4 bits into one, and odd has 3") as caught:
        HQQQuantizer(HQQOptions()).check_layer("odd", dense(3, 64))
    assert caught.value.hint == "--quant-opt skip_modules=odd, or --quant-opt bits=8"
    HQQQuantizer(HQQOptions(bits=3)).check_layer("odd", dense(3, 64))


def test_the_fingerprint_follows_what_decides_the_codes(tmp_path, monkeypatch):
    def mark(dtype="float32"):
        return HQQQuantizer(HQQOptions()).load(small_source(), context(tmp_path, dtype=dtype)).fingerprint

    plain = mark()
    assert mark("float64") == plain
    monkeypatch.setattr("smollm3_hqq.quantizer.version", lambda name: "0.2.9")
    assert mark() != plain


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("bits", "axis", "size"), [(4, 1, 64), (8, 1, None), (3, 1, 32), (2, 0, 32)])
def test_a_stored_layer_is_restored_bit_for_bit(bits, axis, size, bias):
    linear = dense(bias=bias)
    options = HQQOptions(bits=bits, axis=axis, group_size=size)
    layer = Linear(copy.deepcopy(linear), options, "cpu")
    file = {name: value.clone() for name, value in layer.stored().items()}
    again = Linear.restored(linear, file, options, "cpu")
    assert torch.equal(again.dequantize(), layer.dequantize())
    x = torch.randn(3, 128)
    assert torch.equal(again(x), layer(x))
    found = again.described()
    for name, value in layer.described().items():
        assert torch.equal(found[name], value) if isinstance(value, torch.Tensor) else found[name] == value
    assert (again.in_features, again.out_features) == (layer.in_features, layer.out_features)
    assert not any(p.requires_grad for p in again.parameters())


def test_a_model_is_quantized_once(tmp_path, monkeypatch):
    source, ctx = small_source(), context(tmp_path)
    first = HQQQuantizer(HQQOptions()).load(source, ctx)
    monkeypatch.setattr("smollm3_hqq.linear.Linear.__init__", lambda *a: pytest.fail("quantized again"))
    again = HQQQuantizer(HQQOptions()).load(source, ctx)
    ids = torch.arange(12)[None]
    assert torch.equal(again.model(ids).logits, first.model(ids).logits)
    assert again.fingerprint == first.fingerprint
    assert set(again.model.state_dict()) == set(first.model.state_dict())
