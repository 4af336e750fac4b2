"""`torchao-int8` passes the conformance kit with a scale for each row and for each group."""

from __future__ import annotations

from typing import ClassVar

import pytest

from smollm3_finetune.testing import QuantizerConformance

pytestmark = pytest.mark.plugins
ADAPTERS = ("lora", "dora")


class TestRows(QuantizerConformance):
    component = "torchao-int8"
    bits = 8
    experts = True
    altering = ({"group_size": 32}, {"skip_modules": ("q_proj",)})
    skips = ("k_proj", "layers.0")
    adapters = ADAPTERS


class TestRowsInFloat32(QuantizerConformance):
    component = "torchao-int8"
    dtype = "float32"
    bits = 8


class TestRowsInBfloat16(QuantizerConformance):
    component = "torchao-int8"
    dtype = "bfloat16"
    bits = 8
    experts = True


class TestGroups(QuantizerConformance):
    component = "torchao-int8"
    options: ClassVar = {"group_size": 32}
    bits = 8
    experts = True
    group_size = 32
    adapters = ADAPTERS
    test_a_run_is_trained_asked_and_merged_by_commands = None  # once, with the default options


class TestGroupsInBfloat16(QuantizerConformance):
    component = "torchao-int8"
    options: ClassVar = {"group_size": 32}
    dtype = "bfloat16"
    bits = 8
    group_size = 32
