"""The objectives pass the conformance kit."""

from __future__ import annotations

from typing import ClassVar

import pytest

from smollm3_finetune.testing import ObjectiveConformance


class TestDPO(ObjectiveConformance):
    component = "dpo"


@pytest.mark.long
class TestKTO(ObjectiveConformance):
    component = "kto"
    same_held_out_loss: ClassVar[bool] = False


@pytest.mark.long
class TestORPO(ObjectiveConformance):
    component = "orpo"
