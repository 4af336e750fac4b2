"""Tests: the promises of the descriptor (conformance kit), and the behavior of this adapter."""

from __future__ import annotations

import pytest
import torch
from smollm3_finetune.api import ConfigError
from smollm3_finetune.testing import AdapterConformance, plan

from smollm3_reft.adapter import ReftAdapter
from smollm3_reft.options import ReftOptions


class TestReft(AdapterConformance):
    """Inherited tests: identity at the start, gradients compared with a dense copy, save and restore, merge."""

    component = "reft"


def test_an_ending_that_no_layer_has_is_an_error() -> None:
    model = plan("tiny", adapter="reft")
    base = model.quantizer.create().load(model.source, model.context)
    with pytest.raises(ConfigError, match="no linear layer's name ends with 'nothing'"):
        ReftAdapter(ReftOptions(layers="nothing")).attach(base, model.context, None)


def test_a_factor_of_two_doubles_the_output_of_its_layer() -> None:
    model = plan("tiny", adapter="reft")
    base = model.quantizer.create().load(model.source, model.context)
    adapted = ReftAdapter(ReftOptions(layers="0.self_attn.q_proj")).attach(base, model.context, None)
    ((name, scale),) = adapted.parts.items()
    layer = base.model.get_submodule(name.removesuffix(".output_scale"))
    x = torch.randn(3, layer.in_features, dtype=model.context.torch_dtype)
    before = layer(x)
    scale.data.fill_(2.0)
    torch.testing.assert_close(layer(x), 2 * before)
