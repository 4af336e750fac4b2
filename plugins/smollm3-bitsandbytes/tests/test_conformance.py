"""Both quantizers pass the conformance kit, in float32: bitsandbytes has no float64."""

from __future__ import annotations

from smollm3_finetune.testing import QuantizerConformance


class TestNf4(QuantizerConformance):
    component = "bnb-4bit"
    dtype = "float32"
    bits = 4
    experts = True
    group_size = 64
    altering = ({"quant_type": "fp4"}, {"double_quant": False}, {"skip_modules": ("q_proj",)})


class TestInt8(QuantizerConformance):
    component = "bnb-8bit"
    dtype = "float32"
    bits = 8
    experts = True
    altering = ({"skip_modules": ("q_proj",)},)
