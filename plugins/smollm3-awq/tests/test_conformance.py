"""The quantizer passes the conformance kit on a checkpoint that is packed in NumPy."""

from __future__ import annotations

from pathlib import Path

import pytest
from numpy_awq import rounded_checkpoint

from smollm3_finetune.api import ModelSource, directory_source
from smollm3_finetune.testing import QuantizerConformance, small_source

pytestmark = pytest.mark.plugins


class TestAWQ(QuantizerConformance):
    component = "awq"
    bits = 4
    group_size = 32
    adapters = ("lora", "dora")

    def source(self, tmp_path: Path, seed: int = 0) -> ModelSource:
        out = tmp_path / f"codes-{seed}"
        if not out.exists():
            rounded_checkpoint(out, small_source(seed=seed).path)
        return directory_source(out, ref="codes")

    def other_source(self, tmp_path: Path) -> ModelSource:
        return self.source(tmp_path, seed=1)
