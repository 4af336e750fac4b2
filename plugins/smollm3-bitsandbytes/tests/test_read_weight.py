"""`read_weight` compared with dequantization in NumPy, written from the definitions of the formats."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from smollm3_bitsandbytes import eight_bit, four_bit
from smollm3_bitsandbytes.options import Bnb4bitOptions, Bnb8bitOptions

from smollm3_finetune.api import Op

NF4 = np.array(
    # QLoRA, arXiv:2305.14314, appendix E.
    [-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
     -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
     0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0], np.float32
)  # fmt: skip
# Sign, two bits of exponent, one of mantissa, in units of 1/12.
FP4 = np.array([0, 0.0625, 8, 12, 4, 6, 2, 3], np.float32) / np.float32(12)
FP4 = np.concatenate([FP4, -FP4])


def numpy_4bit(layer, table):
    """Codes (high nibble first) times the scale of their block of 64; nested scales are dequantized first."""
    state = layer.weight.quant_state
    packed = layer.weight.data.numpy().reshape(-1)
    codes = np.stack([packed >> 4, packed & 15], axis=1).reshape(-1)
    if state.nested:
        inner = state.state2
        absmax = inner.code.numpy()[state.absmax.numpy()] * np.repeat(inner.absmax.numpy(), 256)[: state.absmax.numel()]
        absmax = (absmax + state.offset.numpy()).astype(np.float32)
    else:
        absmax = state.absmax.numpy()
    return (table[codes] * np.repeat(absmax, 64)).reshape(layer.out_features, layer.in_features)


@pytest.mark.parametrize("double_quant", [False, True])
@pytest.mark.parametrize("quant_type", ["nf4", "fp4"])
def test_4bit_read_weight_is_table_times_scale(source, context, dense, quant_type, double_quant):
    options = Bnb4bitOptions(quant_type=quant_type, double_quant=double_quant)
    base = four_bit.Bnb4bitQuantizer(options).load(source, context())
    layers = [(n, layer) for n, layer in base.model.named_modules() if base.ops_for(layer)]
    assert len(layers) == 4 * 7
    for name, layer in layers:
        assert layer.weight.quant_state.nested is double_quant
        ops = base.ops_for(layer)
        weight = ops.read_weight()
        assert weight.dtype == torch.float32
        assert tuple(weight.shape) == ops.shape == (layer.out_features, layer.in_features)
        assert not weight.requires_grad
        expected = numpy_4bit(layer, NF4 if quant_type == "nf4" else FP4)
        # One or two float32 roundings apart: bitsandbytes fuses the nested scale's multiply and add.
        np.testing.assert_allclose(weight.numpy(), expected, rtol=1e-6, atol=1e-7)
        original = dense.get_submodule(name).weight
        error = ((weight - original).norm() / original.norm()).item()
        assert 0.05 < error < (0.11 if quant_type == "nf4" else 0.16)  # of a normal distribution in blocks of 64


def test_8bit_read_weight_is_code_times_row_scale(source, context, dense):
    base = eight_bit.Bnb8bitQuantizer(Bnb8bitOptions()).load(source, context())
    layers = [(n, layer) for n, layer in base.model.named_modules() if base.ops_for(layer)]
    assert len(layers) == 4 * 7
    for name, layer in layers:
        weight = base.ops_for(layer).read_weight()
        original = dense.get_submodule(name).weight.detach().numpy().astype(np.float16).astype(np.float32)
        absmax = np.abs(original).max(axis=1, keepdims=True)  # (out, 1)
        codes = np.round(original * (127 / absmax))
        # A tie may be rounded up or down, so the bound is one code, and nearly all weights must be equal.
        expected = codes * absmax / 127
        step = absmax / 127
        assert np.abs(weight.numpy() - expected).max() <= step.max() * 1.001
        assert (np.abs(weight.numpy() - expected) < 1e-6).mean() > 0.995


@pytest.mark.parametrize("module", [four_bit, eight_bit])
def test_read_weight_returns_a_new_tensor(source, context, module):
    quantizer, options = (
        (four_bit.Bnb4bitQuantizer, Bnb4bitOptions)
        if module is four_bit
        else (eight_bit.Bnb8bitQuantizer, Bnb8bitOptions)
    )
    base = quantizer(options()).load(source, context())
    ops = base.ops_for(base.model.model.layers[0].self_attn.q_proj)
    first = ops.read_weight()
    kept = first.clone()
    first.zero_()
    assert torch.equal(ops.read_weight(), kept)
    assert ops.ops == {Op.FORWARD, Op.GRAD_INPUT, Op.READ_WEIGHT}
    assert base.ops_for(base.model.lm_head) is None
    assert base.ops_for(base.model.model.norm) is None


def test_bfloat16_read_weight_equals_the_weight_of_the_bfloat16_forward(source, context):
    base = four_bit.Bnb4bitQuantizer(Bnb4bitOptions()).load(source, context("bfloat16"))
    layer = base.model.model.layers[0].mlp.up_proj
    weight = base.ops_for(layer).read_weight()
    assert torch.equal(weight, weight.to(torch.bfloat16).float())
    x = torch.eye(layer.in_features, dtype=torch.bfloat16)  # y = xWᵀ is then Wᵀ itself
    assert torch.equal(layer(x).float(), weight.T)
