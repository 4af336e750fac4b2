"""Tests: the promises of the descriptor (conformance kit), and that the weights are those of quanto."""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch
from optimum.quanto import AbsmaxOptimizer, MaxOptimizer, qfloat8_e4m3fn, qint2, qint4, qint8, quantize_weight
from optimum.quanto.library.extensions.cpp import ext
from smollm3_quanto.options import QuantoOptions
from smollm3_quanto.quantizer import QuantoLinear, check_layer

from smollm3_finetune.api import ConfigError, IncompatibleError
from smollm3_finetune.testing import QuantizerConformance, plan


class TestInt8(QuantizerConformance):
    component = "quanto"
    bits = 8
    experts = True
    altering = ({"weights": "int4"}, {"weights": "float8"}, {"skip_modules": ["k_proj"]})


class TestInt4(QuantizerConformance):
    component = "quanto"
    options: ClassVar[Mapping[str, Any]] = {"weights": "int4", "group_size": 32}
    bits = 4
    group_size = 32
    altering = ({"group_size": 16},)


@pytest.mark.long
class TestInt4InGroupsThatFit(QuantizerConformance):
    component = "quanto"
    options: ClassVar[Mapping[str, Any]] = {"weights": "int4"}
    bits = 4
    experts = True


@pytest.mark.long
class TestFloat8(QuantizerConformance):
    component = "quanto"
    options: ClassVar[Mapping[str, Any]] = {"weights": "float8"}
    bits = 5  # three of the eight are an exponent beyond what a row needs


@pytest.mark.parametrize(
    ("weights", "kind"), [("int8", qint8), ("float8", qfloat8_e4m3fn), ("int4", qint4), ("int2", qint2)]
)
def test_the_weights_are_those_of_quanto(weights: Any, kind: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def unpack(packed: torch.Tensor, bits: int) -> torch.Tensor:
        return torch.cat([(packed >> shift) % 2**bits for shift in range(0, 8, bits)])

    monkeypatch.setattr(ext, "_lib", SimpleNamespace(unpack=unpack))  # quanto compiles it otherwise
    linear = torch.nn.Linear(256, 9)  # nine rows of two groups: the last byte of a column is half empty with int2
    weight = linear.weight.detach()
    if kind.bits == 8:
        theirs = quantize_weight(weight, kind, 0, AbsmaxOptimizer()(weight, qtype=kind, axis=0))
    else:
        scale, shift = MaxOptimizer()(weight, qtype=kind, axis=0, group_size=128)
        theirs = quantize_weight(weight, kind, 0, scale, shift, 128)
    assert torch.equal(QuantoLinear(linear, QuantoOptions(weights=weights)).dense(), theirs.dequantize())


@pytest.mark.parametrize("weights", ["int8", "int4", "int2", "float8"])
def test_a_row_of_equal_weights_is_kept(weights: Any) -> None:
    linear = torch.nn.Linear(64, 2)
    linear.weight.data[0], linear.weight.data[1] = 0.0, 0.25
    dense = QuantoLinear(linear, QuantoOptions(weights=weights)).dense()
    torch.testing.assert_close(dense, linear.weight.detach())


def test_groups_of_8_bits_are_refused_while_planning() -> None:
    with pytest.raises(ConfigError, match="group_size=32 is for int4 and int2"):
        plan("tiny", quant="quanto", quant_options={"weights": "float8", "group_size": 32})


def test_a_layer_with_one_output_is_refused_with_its_name() -> None:
    with pytest.raises(IncompatibleError, match="layers with one output") as caught:
        check_layer("model.layers.0.gate", torch.nn.Linear(8, 1))
    assert caught.value.hint == "--quant-opt skip_modules=gate"
