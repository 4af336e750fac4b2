"""`read_weight` compared bitwise with dequantization in NumPy, written from the definition of the format.

The product of a difference of codes (at most nine bits) and a half-precision scale is exact in float32, so the
comparison is exact.
"""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from smollm3_gptq.options import GPTQOptions
from smollm3_gptq.quantizer import GPTQQuantizer

from smollm3_finetune.api import Op, directory_source


def base_of(directory, context):
    return GPTQQuantizer(GPTQOptions()).load(directory_source(directory, ref=directory.name), context)


def weights_of(base):
    layers = {n: ops for n, m in base.model.named_modules() if (ops := base.ops_for(m)) is not None}
    return {n: ops.read_weight() for n, ops in layers.items()}


def assert_equal(base, right):
    found = weights_of(base)
    assert found.keys() == right.keys()
    for name, weight in found.items():
        assert weight.dtype == torch.float32
        assert not weight.requires_grad
        np.testing.assert_array_equal(weight.numpy(), right[name], err_msg=name)


def test_the_numpy_reference_agrees_with_big_integers(numpy_gptq):
    """Tests the reference: a column is one little-endian integer whose digits to the base 2^bits are the codes."""
    rng = np.random.default_rng(0)
    for bits in (2, 3, 4, 8):
        codes = rng.integers(0, 2**bits, (64, 5))
        words = numpy_gptq.pack(codes, bits)
        assert words.shape == (2 * bits, 5)
        assert words.dtype == np.int32
        for column in range(5):
            number = sum((int(word) % 2**32) << (32 * i) for i, word in enumerate(words[:, column]))
            assert [(number >> (bits * i)) % 2**bits for i in range(64)] == codes[:, column].tolist()
        np.testing.assert_array_equal(numpy_gptq.unpack(words, bits), codes)


@pytest.mark.parametrize(
    ("bits", "layout", "act_order", "sym"),
    list(product((2, 3, 4, 8), ("gptq", "gptq_v2"), (False, True), (False, True))),
)
def test_every_format_equals_the_numpy_reference(numpy_gptq, context, tmp_path, bits, layout, act_order, sym):
    made = numpy_gptq.make_checkpoint(
        tmp_path / "made", bits=bits, layout=layout, act_order=act_order, sym=sym, seed=bits
    )
    base = base_of(made, context())
    right = numpy_gptq.weights_in(made)
    assert len(right) == 7
    assert_equal(base, right)
    layer = base.model.model.layers[0].mlp.down_proj
    assert layer.bits == bits
    assert (layer.order is not None) is act_order


GROUPS = {
    "last-group-not-full": {"group_size": 64, "hidden": 96, "intermediate": 160},
    "last-group-not-full-act-order": {"group_size": 64, "hidden": 96, "intermediate": 160, "act_order": True},
    "whole-row": {"group_size": -1},
    "whole-row-without-g-idx": {"group_size": -1, "g_idx": False},
    "larger-than-the-row": {"group_size": 128},
    "without-g-idx": {"g_idx": False},
    "not-full-without-g-idx": {"group_size": 64, "hidden": 96, "intermediate": 160, "g_idx": False},
    "bias": {"bias": True},
    "bias-act-order": {"bias": True, "act_order": True, "layout": "gptq_v2"},
}


@pytest.mark.parametrize("bits", [3, 4])
@pytest.mark.parametrize("case", GROUPS)
def test_every_kind_of_group_equals_the_numpy_reference(numpy_gptq, context, tmp_path, case, bits):
    made = numpy_gptq.make_checkpoint(tmp_path / "made", bits=bits, sym=False, **GROUPS[case])
    base = base_of(made, context())
    right = numpy_gptq.weights_in(made)
    assert_equal(base, right)
    stored = load_file(made / "model.safetensors")
    for name, weight in right.items():
        layer = base.model.get_submodule(name)
        bias = stored.get(f"{name}.bias")
        assert (layer.bias is not None) is ("bias" in case) is (bias is not None)
        x = torch.randn(3, layer.in_features, dtype=torch.float64)
        y = x @ torch.from_numpy(weight).double().T + (0 if bias is None else bias.double())
        layer.to(torch.float64)
        torch.testing.assert_close(layer(x), y, rtol=1e-12, atol=1e-12)


def test_unquantized_tensors_are_loaded_too(numpy_gptq, context, tmp_path):
    made = numpy_gptq.make_checkpoint(tmp_path / "made", bias=True)
    base = base_of(made, context())
    state = base.model.state_dict()
    for name, tensor in load_file(made / "model.safetensors").items():
        if name.rpartition(".")[2] in ("weight", "bias"):
            assert torch.equal(state[name], tensor), name
    assert not any(p.requires_grad for p in base.model.parameters())
    assert not any(b.is_meta for b in base.model.buffers())


def test_a_quantized_head_is_supported(numpy_gptq, context, tmp_path):
    made = numpy_gptq.make_checkpoint(tmp_path / "made", head=True)
    base = base_of(made, context())
    right = numpy_gptq.weights_in(made)
    assert "lm_head" in right
    assert_equal(base, right)
    assert base.model(torch.tensor([[5, 6]])).logits.shape == (1, 2, 128)


def test_read_weight_returns_a_new_tensor_and_only_quantized_layers_have_ops(numpy_gptq, context, tmp_path):
    base = base_of(numpy_gptq.make_checkpoint(tmp_path / "made", act_order=True), context())
    layer = base.model.model.layers[0].mlp.down_proj
    ops = base.ops_for(layer)
    first = ops.read_weight()
    assert ops.shape == tuple(first.shape) == (64, 96)
    assert ops.ops == {Op.FORWARD, Op.GRAD_INPUT, Op.READ_WEIGHT}
    assert ops.forward_rtol == 0
    kept = first.clone()
    first.zero_()
    assert torch.equal(ops.read_weight(), kept)
    assert base.ops_for(base.model.lm_head) is None
    assert base.ops_for(base.model.model.norm) is None


@pytest.mark.parametrize("act_order", [False, True])
def test_bfloat16_read_weight_equals_the_weight_of_the_bfloat16_forward(numpy_gptq, context, tmp_path, act_order):
    made = numpy_gptq.make_checkpoint(tmp_path / "made", act_order=act_order)
    base = base_of(made, context("bfloat16"))
    for name, right in numpy_gptq.weights_in(made).items():
        layer = base.model.get_submodule(name)
        weight = base.ops_for(layer).read_weight()
        assert torch.equal(weight, torch.from_numpy(right).to(torch.bfloat16).float())
        x = torch.eye(layer.in_features, dtype=torch.bfloat16)  # y = xWᵀ is then Wᵀ itself
        assert torch.equal(layer(x).float(), weight.T)
