"""Tests: the promises of the descriptor (conformance kit), and the behavior of this quantizer."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from smollm3_finetune.api import ConfigError, IncompatibleError
from smollm3_finetune.testing import QuantizerConformance, plan, write_small_model

from smollm3_quanto.options import QuantoOptions
from smollm3_quanto.quantizer import QuantoQuantizer, RoundedLinear


class TestQuanto(QuantizerConformance):
    """Inherited tests: forward, gradients and weights in any sequence of calls, loading twice, fingerprints."""

    component = "quanto"
    bits = 8
    altering = ({"bits": 4}, {"group_size": 32})  # sets of options that change the weights


def test_a_weight_is_off_by_half_a_step_at_most() -> None:
    linear = torch.nn.Linear(64, 8, dtype=torch.float64)
    layer = RoundedLinear(linear, bits=4, group_size=16)
    step = linear.weight.detach().unflatten(1, (4, 16)).abs().amax(2) / 7  # (out, groups)
    off = (layer.dense() - linear.weight).abs().unflatten(1, (4, 16)).amax(2)
    assert bool((off <= step / 2 + 1e-12).all())
    assert float(off.max()) > 0


def test_groups_that_do_not_fit_are_an_error() -> None:
    model = plan("tiny", quant="quanto")
    with pytest.raises(ConfigError, match="groups of 7 do not divide"):
        QuantoQuantizer(QuantoOptions(group_size=7)).load(model.source, model.context)


def test_a_checkpoint_that_is_already_quantized_is_refused(tmp_path: Path) -> None:
    config = write_small_model(tmp_path / "quantized") / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "quantization_config": {"quant_method": "other"}}))
    with pytest.raises(IncompatibleError, match="already quantized by other"):
        plan(str(config.parent), quant="quanto")
