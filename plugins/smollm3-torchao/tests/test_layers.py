"""Layers against NumPy and against torchao's own forward, and the behavior of torchao from which they differ."""

from __future__ import annotations

import copy
import subprocess
import sys

import numpy as np
import pytest
import torch
from smollm3_torchao.linear import Int8Linear, Int8WeightOnlyConfig, PerGroup, PerRow, quantize, quantize_
from smollm3_torchao.options import TorchaoInt8Options
from smollm3_torchao.quantizer import TorchaoInt8Quantizer
from torch import nn
from torch._inductor import config as inductor
from torchao.quantization import Int8Tensor

from smollm3_finetune.api import ops_for_layers
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


def read(layer, dtype=torch.float32):
    return ops_for_layers(Int8Linear, Int8Linear.dense, dtype)(layer).read_weight()


def relative(a, b):
    return float((a.double() - b.double()).norm() / b.double().norm())


@pytest.mark.parametrize("group_size", GROUPS)
def test_read_weight_is_code_times_scale(group_size):
    """Symmetric, with the largest magnitude of a row or group at the end of the codes."""
    linear = dense()
    layer = ours(linear, group_size)
    found = read(layer).numpy()
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
    weight = read(layer, torch.float64)
    assert relative(layer(x), x @ weight.double().T) <= 1e-14


def test_the_forward_is_that_of_the_dense_copy_to_the_bit_where_torchaos_is_not():
    linear = dense(256, 576)
    layer, other, copied = ours(linear), stock(linear), copy.deepcopy(linear)
    copied.weight = nn.Parameter(read(layer), requires_grad=False)
    x = torch.randn(5, 7, 576)
    assert torch.equal(layer(x), copied(x))
    assert 0 < relative(other(x), copied(x)) < 1e-5


def test_the_settings_of_the_compiler_are_left_as_they_are():
    before = inductor.coordinate_descent_tuning
    ours(dense())
    assert inductor.coordinate_descent_tuning == before
    with inductor.patch(coordinate_descent_tuning=False):
        quantize_(dense(), Int8WeightOnlyConfig())
        assert inductor.coordinate_descent_tuning  # what torchao does unless told otherwise


def test_importing_it_writes_nothing():
    code = "import logging; logging.basicConfig(); import smollm3_torchao.linear"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("", "")


@pytest.mark.parametrize("group_size", GROUPS)
def test_a_layer_looks_like_an_nn_linear_and_can_be_copied(group_size):
    layer = ours(dense(bias=True), group_size)
    assert isinstance(layer, nn.Linear) and isinstance(layer, Int8Linear)
    assert isinstance(layer.weight, nn.Parameter) and isinstance(layer.weight, Int8Tensor)
    x = torch.randn(2, 3, 128)
    assert torch.equal(copy.deepcopy(layer)(x), layer(x))


def test_a_wider_dtype_than_float32_is_the_same_base(tmp_path):
    def mark(**options):
        quantizer = TorchaoInt8Quantizer(TorchaoInt8Options())
        return quantizer.load(small_source(), context(tmp_path, **options)).fingerprint

    assert mark(dtype="float64") == mark(dtype="float32")
