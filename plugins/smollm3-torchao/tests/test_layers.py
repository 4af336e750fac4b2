"""Layers against NumPy and against torchao's own forward; what torchao does that is kept away; what is left dense."""

from __future__ import annotations

import copy
import subprocess
import sys

import numpy as np
import pytest
import torch
from smollm3_torchao.library import Int8Tensor, Int8WeightOnlyConfig, PerGroup, PerRow, quantize_
from smollm3_torchao.linear import Int8Linear, ops_in, quantize
from smollm3_torchao.options import TorchaoInt8Options
from smollm3_torchao.quantizer import TorchaoInt8Quantizer
from torch import nn
from torch._inductor import config as inductor

from smollm3_finetune.api import ConfigError, IncompatibleError
from smollm3_finetune.testing import context, small_source

GROUPS = [None, 32]


def dense(out=96, features=128, bias=False, dtype=torch.float32):
    linear = nn.Linear(features, out, bias=bias)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in linear.parameters():
            parameter.normal_(0, 0.04, generator=generator)
    return linear.requires_grad_(False).to(dtype)


def stock(linear, group_size=None):
    layer = copy.deepcopy(linear)
    granularity = PerRow() if group_size is None else PerGroup(group_size)
    quantize_(layer, Int8WeightOnlyConfig(granularity=granularity, set_inductor_config=False))
    return layer


def ours(linear, group_size=None):
    layer = copy.deepcopy(linear)
    quantize(layer, group_size, "cpu")
    return layer


def relative(a, b):
    return float((a.double() - b.double()).norm() / b.double().norm())


@pytest.mark.parametrize("group_size", GROUPS)
def test_read_weight_is_code_times_scale(group_size):
    """Symmetric, with the largest magnitude of a row or group at the end of the codes."""
    linear = dense()
    layer = ours(linear, group_size)
    found = ops_in(torch.float32)(layer).read_weight().numpy()
    blocks = linear.weight.numpy().reshape(96, -1, group_size or 128)
    scale = np.abs(blocks).max(axis=2, keepdims=True) / 127.5  # of 256 values
    np.testing.assert_allclose(layer.weight.scale.numpy(), scale[..., 0], rtol=1e-6)
    codes = layer.weight.qdata.numpy().reshape(blocks.shape)
    assert codes.min() >= -128 and codes.max() <= 127
    np.testing.assert_allclose(found, (codes * scale).reshape(96, 128), rtol=1e-6, atol=0)
    assert np.abs(found.reshape(blocks.shape) - blocks).max() <= 1.001 * scale.max()


@pytest.mark.parametrize("group_size", GROUPS)
def test_forward_and_gradient_are_near_torchaos_own_and_no_dense_weight_is_kept(group_size):
    linear = dense()
    layers = {"stock": stock(linear, group_size), "ours": ours(linear, group_size)}
    x = torch.randn(4, 3, 128, requires_grad=True)
    outputs, gradients, kept = {}, {}, {}
    for name, layer in layers.items():
        shapes = kept[name] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, s=shapes: s.append(tuple(t.shape)) or t, lambda t: t):
            outputs[name] = layer(x)
        (gradients[name],) = torch.autograd.grad(outputs[name].sum(), x)
    assert relative(outputs["ours"].detach(), outputs["stock"].detach()) <= 1e-6
    assert relative(gradients["ours"], gradients["stock"]) <= 1e-6
    assert any(sorted(shape) == [96, 128] for shape in kept["stock"])
    assert kept["ours"] == []


@pytest.mark.parametrize("group_size", GROUPS)
def test_training_under_autocast_has_the_right_gradient(group_size):
    layer = ours(dense(bias=True), group_size)
    weight = ops_in(torch.float32)(layer).read_weight()
    x = torch.randn(3, 128, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(x)
    (gradient,) = torch.autograd.grad(y.float().sum(), x)
    assert gradient.dtype == torch.float32
    assert relative(gradient, torch.ones(3, 96) @ weight) <= 1e-2


@pytest.mark.parametrize("group_size", GROUPS)
def test_codes_do_not_depend_on_the_dtype_of_the_model(group_size):
    half = dense(dtype=torch.bfloat16)
    codes = [ours(copy.deepcopy(half).to(t), group_size).weight for t in (torch.bfloat16, torch.float32, torch.float64)]
    for other in codes[1:]:
        assert torch.equal(other.qdata, codes[0].qdata)
        assert torch.equal(other.scale, codes[0].scale)


def test_torchao_itself_takes_no_float64():
    with pytest.raises(AssertionError, match="float64"):
        stock(dense(dtype=torch.float64))
    layer = ours(dense(dtype=torch.float64))
    x = torch.randn(2, 128, dtype=torch.float64)
    weight = ops_in(torch.float64)(layer).read_weight()
    assert relative(layer(x), x @ weight.double().T) <= 1e-14


def test_the_forward_is_that_of_the_dense_copy_to_the_bit_where_torchaos_is_not():
    linear = dense(256, 576)
    layer, other, copied = ours(linear), stock(linear), copy.deepcopy(linear)
    copied.weight = nn.Parameter(ops_in(torch.float32)(layer).read_weight(), requires_grad=False)
    x = torch.randn(5, 7, 576)
    assert torch.equal(layer(x), copied(x))
    assert 0 < relative(other(x), copied(x)) < 1e-5


def test_adapters_may_add_to_the_output_in_place():
    layer = ours(dense())
    x = torch.randn(2, 3, 128, requires_grad=True)
    y = layer(x)
    y += 1
    y.sum().backward()
    assert x.grad is not None


def test_the_settings_of_the_compiler_are_left_as_they_are():
    before = inductor.coordinate_descent_tuning
    ours(dense())
    assert inductor.coordinate_descent_tuning == before
    with inductor.patch(coordinate_descent_tuning=False):
        quantize_(dense(), Int8WeightOnlyConfig())
        assert inductor.coordinate_descent_tuning  # what torchao does unless told otherwise


def test_importing_it_writes_nothing():
    code = "import logging; logging.basicConfig(); import smollm3_torchao.library"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("", "")


@pytest.mark.parametrize("group_size", GROUPS)
def test_a_layer_looks_like_an_nn_linear_and_offers_no_dense_weight(group_size):
    layer = ours(dense(bias=True), group_size)
    assert isinstance(layer, nn.Linear) and isinstance(layer, Int8Linear)
    assert isinstance(layer.weight, nn.Parameter) and isinstance(layer.weight, Int8Tensor)
    ops_for = ops_in(torch.float32)
    assert ops_for(layer).ops == {"forward", "grad-input", "read-weight"}
    assert ops_for(nn.Linear(4, 4)) is None
    assert ops_for(nn.LayerNorm(4)) is None
    x = torch.randn(2, 3, 128)
    assert torch.equal(copy.deepcopy(layer)(x), layer(x))


class Unreadable:
    """The small model's source, whose weights must not be read."""

    ref, fingerprint = "org/model", "f"
    config = small_source().config

    def load(self, **kwargs):
        raise AssertionError("weights were read")


@pytest.mark.parametrize(
    ("options", "error", "says", "hint"),
    [
        (TorchaoInt8Options(skip_modules=("k_porj",)), ConfigError, "'k_porj'", "k_proj"),
        (
            TorchaoInt8Options(skip_modules=("layers",)),
            IncompatibleError,
            "no linear layer to quantize",
            "--quant none",
        ),
        (
            TorchaoInt8Options(group_size=48, skip_modules=("self_attn", "gate_proj", "up_proj")),
            ConfigError,
            "groups of 48 do not divide the 128 in_features of model.layers.0.mlp.down_proj",
            "group_size=128",
        ),
    ],
)
def test_what_does_not_fit_the_architecture_is_refused_before_weights(tmp_path, options, error, says, hint):
    with pytest.raises(error, match="torchao-int8") as caught:
        TorchaoInt8Quantizer(options).load(Unreadable(), context(tmp_path))
    assert says in str(caught.value)
    assert hint in caught.value.hint


def test_skipped_layers_and_the_head_stay_dense(tmp_path):
    options = TorchaoInt8Options(skip_modules=("k_proj", "layers.0"))
    base = TorchaoInt8Quantizer(options).load(small_source(), context(tmp_path))
    quantized = {n for n, m in base.model.named_modules() if base.ops_for(m)}
    assert len(quantized) == 6
    assert all(n.startswith("model.layers.1.") and not n.endswith("k_proj") for n in quantized)
    assert base.model.lm_head.weight is base.model.get_input_embeddings().weight


def test_the_fingerprint_follows_what_decides_the_codes(tmp_path):
    def mark(dtype="float32", **options):
        quantizer = TorchaoInt8Quantizer(TorchaoInt8Options(**options))
        return quantizer.load(small_source(), context(tmp_path, dtype=dtype)).fingerprint

    plain = mark()
    assert mark("float64") == plain
    assert mark("bfloat16") != plain  # it rounds a float32 checkpoint before torchao sees it
    assert mark(group_size=64) != plain
    assert mark(skip_modules=("q_proj", "k_proj")) == mark(skip_modules=("k_proj", "q_proj")) != plain
