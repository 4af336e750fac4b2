"""The round trips of GGUF types are those of the gguf package, bit for bit."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, dequantize, quantize
from smollm3_gguf.round_trip import BLOCKS, FLOATS, GgufRoundTrip, rounded

from smollm3_finetune.testing import small_model

KINDS = (*BLOCKS, *FLOATS, "f32")
SHAPE = (96, 128)


def random(scale=0.02, seed=0):
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed)) * scale


def ties():
    """Every block has its largest magnitude twice, with both signs; the negative one is first in half of them."""
    weight = random().view(-1, 32)
    weight[:, 3], weight[:, 20] = 1.0, -1.0
    weight[::2, 3], weight[::2, 20] = -1.0, 1.0
    return weight.view(SHAPE)


def halves():
    """Values that lie between two codes of each type, up to one unit in the last place."""
    codes = torch.arange(96 * 128).remainder(511).sub(255).div(2).view(-1, 32)
    codes[:, 0] = 127
    codes[1::4, 0], codes[2::4, 0], codes[3::4, 0] = -8, 15, -16
    return codes.view(SHAPE).contiguous()


def with_zeros():
    weight = random()
    weight[:10], weight[10:20], weight[20:40, :64] = 0.0, -0.0, 0.0
    return weight


WEIGHTS = {
    "random": random(),
    "large": random(1000.0),
    "too small for float16": random(1e-9),
    "denormal": random(1e-40),
    "least": random(1e-45),
    "huge": random(1e30),
    "zeros": with_zeros(),
    "all zero": torch.zeros(SHAPE),
    "constant": torch.full(SHAPE, 0.3),
    "ties": ties(),
    "halves": halves(),
    "above halves": halves().nextafter(torch.full((), 1e9)),
    "below halves": halves().nextafter(torch.full((), -1e9)),
    "positive": random().abs(),
    "negative": -random().abs(),
}


def expected(weight, kind):
    ggml = GGMLQuantizationType[kind.upper()]
    with np.errstate(all="ignore"):
        return torch.from_numpy(np.ascontiguousarray(dequantize(quantize(weight.numpy(), ggml), ggml)))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", WEIGHTS)
def test_it_equals_gguf(name, kind):
    weight = WEIGHTS[name].contiguous()
    before = weight.clone()
    found, right = rounded(weight, kind), expected(weight, kind).view(SHAPE)
    finite = right.isfinite()  # a scale beyond float16 is infinite in both
    assert torch.equal(found.isfinite(), finite)
    assert torch.equal(found[finite].view(torch.int32), right[finite].view(torch.int32))
    assert torch.equal(weight, before)
    assert found.data_ptr() != weight.data_ptr()


def test_a_weight_that_is_not_contiguous_is_rounded_along_its_rows():
    weight = random().T.contiguous().T
    assert torch.equal(rounded(weight, "q4_0"), expected(random(), "q4_0").view(SHAPE))


@pytest.mark.parametrize("kind", BLOCKS)
def test_the_order_of_the_rows_changes_no_block(kind):
    """llama.cpp stores the rows of the query and key projections in another order."""
    order = torch.arange(SHAPE[0]).view(2, -1, SHAPE[0] // 4).swapaxes(1, 2).reshape(-1)
    stored = expected(random()[order].contiguous(), kind).view(SHAPE)
    assert torch.equal(rounded(random(), kind)[order], stored)


def test_it_covers_linear_layers_and_embeddings():
    model = small_model()
    trip = GgufRoundTrip(lambda name, shape: "f32" if name.endswith("k_proj") else "q8_0")
    layers = set(trip.layers(model))
    assert {"model.embed_tokens", "lm_head", "model.layers.0.self_attn.q_proj"} <= layers
    assert len(layers) == 2 + 2 * 6
    weight = model.model.layers[0].mlp.up_proj.weight
    assert trip.grid("model.layers.0.mlp.up_proj", weight) == {}
    found = trip.apply("model.layers.0.mlp.up_proj", weight, {})
    assert torch.equal(found, expected(weight.detach(), "q8_0").view(weight.shape))
    assert not found.requires_grad


@pytest.mark.parametrize(
    ("kind", "columns", "message"), [("q4_k", 64, "no round trip is known"), ("q4_0", 40, "a row of 40 weights")]
)
def test_what_it_cannot_round_is_refused(kind, columns, message):
    with pytest.raises(ValueError, match=message):
        rounded(torch.ones(2, columns), kind)
