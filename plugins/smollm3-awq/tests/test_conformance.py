"""The quantizer passes the conformance kit on a checkpoint that is packed in NumPy."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest

from smollm3_finetune.api import ModelSource, directory_source
from smollm3_finetune.testing import QuantizerConformance, small_source

pytestmark = pytest.mark.plugins


class TestAWQ(QuantizerConformance):
    component = "awq"
    bits = 4
    group_size = 32
    adapters = ("dora",)
    test_a_run_is_trained_asked_and_merged_by_commands = None  # it trains the built-in model, which is not quantized

    @pytest.fixture(autouse=True)
    def codes(self, numpy_awq: ModuleType, tmp_path: Path) -> None:
        self.numpy_awq, self.directory = numpy_awq, tmp_path / "reference"

    def source(self, tmp_path: Path, seed: int = 0) -> ModelSource:
        out = tmp_path / f"codes-{seed}"
        if not out.exists():
            self.numpy_awq.rounded_checkpoint(out, small_source(seed=seed).path)
        return directory_source(out, ref="codes")

    def reference(self) -> str:
        out = Path(self.directory)
        return str(out if out.exists() else self.numpy_awq.rounded_checkpoint(out, small_source().path))

    def other_source(self, tmp_path: Path) -> ModelSource:
        return self.source(tmp_path, seed=1)
