"""The quantizer passes the conformance kit with every scheme that it writes."""

from __future__ import annotations

from typing import ClassVar

import pytest

from smollm3_finetune.testing import QuantizerConformance

pytestmark = pytest.mark.plugins


class TestFourBits(QuantizerConformance):
    component = "compressed-tensors"
    bits = 4
    group_size = 64
    experts = True
    altering = ({"group_size": 32}, {"scheme": "W8A16"}, {"group_size": -1}, {"skip_modules": ("q_proj",)})
    skips = ("k_proj", "layers.0")
    adapters = ("lora", "dora")


class TestFourBitsInBfloat16(QuantizerConformance):
    component = "compressed-tensors"
    dtype = "bfloat16"
    bits = 4
    group_size = 64


class TestFourBitsWithZeroPoints(QuantizerConformance):
    component = "compressed-tensors"
    options: ClassVar = {"scheme": "W4A16_ASYM", "group_size": 32}
    bits = 4
    group_size = 32
    experts = True


class TestEightBits(QuantizerConformance):
    component = "compressed-tensors"
    options: ClassVar = {"scheme": "W8A16", "group_size": -1}
    bits = 8
    dtype = "float32"


class TestFloats(QuantizerConformance):
    component = "compressed-tensors"
    options: ClassVar = {"scheme": "FP8A16"}
    bits = 5  # four bits of precision and a sign
    dtype = "float32"
    experts = True


class TestFloatsWithActivations(QuantizerConformance):
    component = "compressed-tensors"
    options: ClassVar = {"scheme": "FP8_DYNAMIC"}
    bits = 5
    dtype = "float32"
