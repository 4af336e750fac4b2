"""The loader passes the conformance kit."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest

from smollm3_finetune.testing import LoaderConformance


class TestGguf(LoaderConformance):
    component = "gguf"
    unknown = "/nowhere/nothing.gguf"
    files = ()  # a GGUF file contains no checkpoint files

    @pytest.fixture(autouse=True)
    def writer(self, tiny_gguf: ModuleType) -> None:
        self.tiny_gguf = tiny_gguf

    def reference(self, directory: Path, seed: int) -> str:
        file = directory / "model.gguf"
        own, self.tiny_gguf.weights = self.tiny_gguf.weights, lambda: own(seed)
        try:
            self.tiny_gguf.write(file)
        finally:
            self.tiny_gguf.weights = own
        return str(file)
