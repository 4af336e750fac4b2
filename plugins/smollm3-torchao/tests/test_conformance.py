"""`torchao-int8` passes the conformance kit with a scale for each row and for each group."""

from __future__ import annotations

from typing import ClassVar

from smollm3_finetune.testing import QuantizerConformance


class TestRows(QuantizerConformance):
    component = "torchao-int8"
    bits = 8
    altering = ({"group_size": 32}, {"skip_modules": ("q_proj",)})


class TestRowsInFloat32(QuantizerConformance):
    component = "torchao-int8"
    dtype = "float32"
    bits = 8


class TestRowsInBfloat16(QuantizerConformance):
    component = "torchao-int8"
    dtype = "bfloat16"
    bits = 8


class TestGroups(QuantizerConformance):
    component = "torchao-int8"
    options: ClassVar = {"group_size": 32}
    bits = 8
    group_size = 32


class TestGroupsInBfloat16(QuantizerConformance):
    component = "torchao-int8"
    options: ClassVar = {"group_size": 32}
    dtype = "bfloat16"
    bits = 8
    group_size = 32
