"""The objective passes the conformance kit, with each divergence and with a part of the cross-entropy."""

from __future__ import annotations

from typing import ClassVar

from smollm3_finetune.testing import ObjectiveConformance


class TestForwardKl(ObjectiveConformance):
    component = "distill"


class TestReverseKlAndCrossEntropy(ObjectiveConformance):
    component = "distill"
    options: ClassVar = {"divergence": "reverse-kl", "loss_weight": 0.5, "top_k": 8}


class TestJsdWithTemperature(ObjectiveConformance):
    component = "distill"
    options: ClassVar = {"divergence": "jsd", "beta": 0.3, "temperature": 2.0}
