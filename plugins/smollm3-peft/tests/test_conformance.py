"""PEFT's methods pass the conformance kit, on layers that provide only the operations that the method declares."""

from __future__ import annotations

from typing import ClassVar

from smollm3_finetune.testing import AdapterConformance


class TestLora(AdapterConformance):
    component = "lora"
    options: ClassVar = {"rank": 4}


class TestDora(AdapterConformance):
    component = "dora"
    options: ClassVar = {"rank": 4}
    gradient_bound = 0.1  # the norm is held constant in the backward pass (DoRA, arXiv:2402.09353, section 4.3)


class TestIa3(AdapterConformance):
    component = "ia3"


class TestAdaLora(AdapterConformance):
    """Changes its rank in `on_step`, and has state."""

    component = "adalora"
    options: ClassVar = {"rank": 3, "initial_rank": 6, "warmup_steps": 0, "final_steps": 2}


class TestPissa(AdapterConformance):
    """Moves part of the base into the adapter: needs dense layers, cannot be disabled, and has no float64."""

    component = "lora"
    options: ClassVar = {"rank": 4, "init": "pissa"}
    dtype = "float32"


class TestPromptTuning(AdapterConformance):
    """Initially changes the output, does not pack and does not merge."""

    component = "prompt-tuning"
    options: ClassVar = {"virtual_tokens": 4}
