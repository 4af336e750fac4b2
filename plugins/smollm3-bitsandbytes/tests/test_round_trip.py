"""The round trip gives bit for bit what a loaded layer dequantizes to, and what a written checkpoint holds."""

from __future__ import annotations

import bitsandbytes as bnb
import pytest
import torch
from bitsandbytes import functional
from smollm3_bitsandbytes.eight_bit import Bnb8bitQuantizer
from smollm3_bitsandbytes.four_bit import Bnb4bitQuantizer
from smollm3_bitsandbytes.options import Bnb4bitOptions, Bnb8bitOptions
from smollm3_bitsandbytes.round_trip import eight_bits, four_bits
from transformers import AutoModelForCausalLM

from smollm3_finetune.api import CheckpointQuantizer, IncompatibleError, Purpose, RoundTripMaker, directory_source
from smollm3_finetune.testing import mixture_source

QUANTIZERS = [
    Bnb4bitQuantizer(Bnb4bitOptions()),
    Bnb4bitQuantizer(Bnb4bitOptions(double_quant=False, skip_modules=("k_proj",))),
    Bnb4bitQuantizer(Bnb4bitOptions(quant_type="fp4")),
    Bnb4bitQuantizer(Bnb4bitOptions(quant_type="fp4", double_quant=False)),
    Bnb8bitQuantizer(Bnb8bitOptions()),
    Bnb8bitQuantizer(Bnb8bitOptions(skip_modules=("up_proj", "q_proj"))),
]
SHAPES = [(64, 128), (576, 100), (7, 64), (5, 26)]


def same(a, b):
    """Whether two float32 tensors are equal bit for bit, with the signs of zeros."""
    return a.dtype == b.dtype == torch.float32 and torch.equal(a.view(torch.int32), b.view(torch.int32))


def loaded(base):
    return {n: base.ops_for(m).read_weight() for n, m in base.model.named_modules() if base.ops_for(m)}


@pytest.mark.parametrize("quantizer", QUANTIZERS)
def test_it_equals_what_is_loaded_and_what_is_written(source, dense, context, ids, tmp_path, quantizer):
    assert isinstance(quantizer, RoundTripMaker)
    assert isinstance(quantizer, CheckpointQuantizer)
    weights = loaded(quantizer.load(source, context()))
    trip = quantizer.round_trip(source, context())
    assert set(trip.layers(dense)) == set(weights)
    for name, weight in weights.items():
        original = dense.get_submodule(name).weight
        before = original.detach().clone()
        assert trip.grid(name, original) == {}
        found = trip.apply(name, original, {})
        assert same(found, weight), name
        assert not found.requires_grad
        assert torch.equal(original, before)
    quantizer.write(source, tmp_path, context(purpose=Purpose.QUANTIZE))
    written = loaded(quantizer.load(directory_source(tmp_path, ref="written"), context()))
    assert written.keys() == weights.keys()
    assert all(same(written[n], weights[n]) for n in weights)


@pytest.mark.parametrize("quantizer", [QUANTIZERS[0], QUANTIZERS[4]])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_plain_transformers_loads_what_is_written(source, context, ids, tmp_path, quantizer, dtype):
    quantizer.write(source, tmp_path, context(dtype, Purpose.QUANTIZE))
    model = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert model.dtype == getattr(torch, dtype)
    base = quantizer.load(directory_source(tmp_path, ref="written"), context(dtype))
    model.train()  # in eval mode, bitsandbytes rounds the activations of an 8-bit layer
    with torch.no_grad():
        found, expected = model(ids).logits, base.model.train()(ids).logits
    assert (found - expected).norm() <= (1e-5 if dtype == "float32" else 2e-2) * expected.norm()


def test_the_codes_do_not_depend_on_the_dtype_of_the_other_weights(source, context, tmp_path):
    quantizer = QUANTIZERS[0]
    quantizer.write(source, tmp_path, context("bfloat16", Purpose.QUANTIZE))
    written = loaded(quantizer.load(directory_source(tmp_path, ref="written"), context()))
    expected = loaded(quantizer.load(source, context()))
    assert all(same(written[n], expected[n]) for n in expected)


def weights_of(shape, code):
    """Weights whose scaled values are random, on and next to the boundaries between codes, zero, tiny or huge."""
    random = torch.randn(shape, generator=torch.Generator().manual_seed(0)) * 0.02
    code = code.sort().values
    boundaries = (code[:-1] + code[1:]) / 2
    ties = boundaries[torch.arange(random.numel()).reshape(shape) % len(boundaries)].contiguous()
    ties[:, 0] = 1
    zero_row = random.clone()
    zero_row[0] = -0.0
    yield from (random, random * 1e30, random * 1e-37, random * 1e-42, torch.zeros(shape), -torch.zeros(shape))
    yield from (zero_row, ties, -ties, ties.nextafter(torch.full((), 9.0)), ties.nextafter(torch.full((), -9.0)))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("quant_type", ["nf4", "fp4"])
@pytest.mark.parametrize("double_quant", [False, True])
def test_four_bits_are_those_of_bitsandbytes(shape, quant_type, double_quant):
    for weight in weights_of(shape, functional.get_4bit_type(quant_type, device="cpu")):
        how = {"compress_statistics": double_quant, "quant_type": quant_type}
        codes, state = functional.quantize_4bit(weight, blocksize=64, **how)
        expected = functional.dequantize_4bit(codes, state).reshape(shape)
        assert same(four_bits(weight, quant_type, double_quant), expected)
        assert same(four_bits(weight.T.contiguous().T, quant_type, double_quant), expected)


@pytest.mark.parametrize("shape", SHAPES)
def test_eight_bits_are_those_of_bitsandbytes(shape):
    for weight in weights_of(shape, torch.arange(-127, 128) / 127):
        layer = bnb.nn.Int8Params(weight.clone(), requires_grad=False, has_fp16_weights=False).to("cpu")
        expected = layer.CB.to(torch.float32) * (layer.SCB[:, None] * (1.0 / 127.0))
        if weight.abs().max() < 65504:  # float16 has no larger value
            assert same(eight_bits(weight), expected)


@pytest.mark.parametrize("quantizer", [QUANTIZERS[0], QUANTIZERS[4]])
def test_experts_are_refused(context, tmp_path, quantizer):
    mixture = mixture_source()
    with pytest.raises(IncompatibleError, match=r"transformers reads 'model\.layers\.0\.mlp\.experts.*' unquantized"):
        quantizer.write(mixture, tmp_path, context(purpose=Purpose.QUANTIZE))
    trip = quantizer.round_trip(mixture, context())
    with pytest.raises(IncompatibleError, match=r"a model with experts cannot be trained as bnb-.bit writes it"):
        trip.layers(mixture.load(dtype=torch.float32))
    assert not list(tmp_path.iterdir())


def test_a_quantized_source_is_not_written_again(source, context, tmp_path):
    QUANTIZERS[0].write(source, tmp_path / "once", context(purpose=Purpose.QUANTIZE))
    with pytest.raises(IncompatibleError, match="already quantized by bitsandbytes"):
        QUANTIZERS[0].write(
            directory_source(tmp_path / "once", ref="once"), tmp_path / "twice", context(purpose=Purpose.QUANTIZE)
        )
