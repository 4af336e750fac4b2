"""`hqq` passes the conformance kit at every number of bits and along both axes."""

from __future__ import annotations

from typing import ClassVar

import pytest

from smollm3_finetune.testing import QuantizerConformance

pytestmark = pytest.mark.plugins
ADAPTERS = ("lora", "dora")

ALTERING = (
    {"bits": 8},
    {"group_size": 32},
    {"group_size": 8},
    {"group_size": 32, "axis": 0},
    {"skip_modules": ("q_proj",)},
)


class TestFourBits(QuantizerConformance):
    component = "hqq"
    bits = 4
    experts = True
    group_size = 64
    altering = ALTERING
    skips = ("k_proj", "layers.0")
    adapters = ADAPTERS


class TestFourBitsInFloat32(QuantizerConformance):
    component = "hqq"
    dtype = "float32"
    bits = 4
    experts = True
    group_size = 64


class TestFourBitsInBfloat16(QuantizerConformance):
    component = "hqq"
    dtype = "bfloat16"
    bits = 4
    experts = True
    group_size = 64


class TestEightBits(QuantizerConformance):
    component = "hqq"
    options: ClassVar = {"bits": 8, "group_size": None}
    bits = 8


class TestThreeBits(QuantizerConformance):
    component = "hqq"
    options: ClassVar = {"bits": 3, "group_size": 32}
    bits = 3
    group_size = 32


class TestTwoBitsAlongOutputs(QuantizerConformance):
    component = "hqq"
    options: ClassVar = {"bits": 2, "group_size": 32, "axis": 0}
    bits = 2
    experts = True
    group_size = 32
    adapters = ADAPTERS
    test_a_run_is_trained_asked_and_merged_by_commands = None  # once, with the default options
