"""The round trip gives bit for bit what a loaded layer dequantizes to."""

from __future__ import annotations

import pytest
import torch
from smollm3_torchao.linear import quantize
from smollm3_torchao.options import TorchaoInt8Options
from smollm3_torchao.quantizer import TorchaoInt8Quantizer
from smollm3_torchao.round_trip import rounded
from torch import nn

from smollm3_finetune.api import IncompatibleError, RoundTripMaker
from smollm3_finetune.testing import context, mixture_source, small_model, small_source


def same(a, b):
    """Whether two float32 tensors are equal bit for bit, with the signs of zeros."""
    return a.dtype == b.dtype == torch.float32 and torch.equal(a.view(torch.int32), b.view(torch.int32))


@pytest.mark.parametrize("options", [TorchaoInt8Options(), TorchaoInt8Options(group_size=32, skip_modules=("k_proj",))])
def test_it_equals_what_is_loaded(options, tmp_path):
    quantizer, source = TorchaoInt8Quantizer(options), small_source()
    ctx = context(tmp_path, dtype="float32")
    assert isinstance(quantizer, RoundTripMaker)
    base, model = quantizer.load(source, ctx), small_model()
    loaded = {n: base.ops_for(m).read_weight() for n, m in base.model.named_modules() if base.ops_for(m)}
    trip = quantizer.round_trip(source, ctx)
    assert set(trip.layers(model)) == set(loaded)
    for name, weight in loaded.items():
        original = model.get_submodule(name).weight
        before = original.detach().clone()
        assert trip.grid(name, original) == {}
        assert same(trip.apply(name, original, {}), weight), name
        assert torch.equal(original, before)


def weights():
    random = torch.randn(48, 64, generator=torch.Generator().manual_seed(0)) * 0.02
    halves = torch.arange(48 * 64).remainder(255).sub(127).div(2).view(48, 64)
    halves[:, 0] = 127.5
    row = random.clone()
    row[0] = -0.0
    yield from (random, random * 1e30, random * 1e-30, random * 1e-42, torch.zeros(48, 64), row, halves, -halves)


@pytest.mark.parametrize("group_size", [None, 8, 64])
def test_special_values_are_those_of_torchao(group_size):
    for weight in weights():
        linear = nn.Linear(64, 48, bias=False)
        linear.weight = nn.Parameter(weight.clone(), requires_grad=False)
        assert same(rounded(weight, group_size), quantize(linear, group_size, "cpu").dense())


def test_experts_are_refused(tmp_path):
    source, ctx = mixture_source(), context(tmp_path, dtype="float32")
    trip = TorchaoInt8Quantizer(TorchaoInt8Options()).round_trip(source, ctx)
    with pytest.raises(IncompatibleError, match="a model with experts cannot be trained as torchao-int8 writes it"):
        trip.layers(source.load(dtype=torch.float32))
