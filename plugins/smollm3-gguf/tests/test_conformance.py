"""The loader and the exporter pass the conformance kit."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest

from smollm3_finetune.api import ModelSource, directory_source
from smollm3_finetune.testing import ExporterConformance, LoaderConformance


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


class TestGgufExport(ExporterConformance):
    component = "gguf"
    precision = 1e-3  # float16

    @pytest.fixture(autouse=True)
    def small(self, exported: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
        self.exported = exported
        monkeypatch.setattr("smollm3_gguf.exporter.GgufExporter.fuzzed", 50)

    def model(self, directory: Path) -> ModelSource:
        """Four layers, the last without RoPE: llama.cpp has no other pattern."""
        return directory_source(self.exported.write_model(directory), ref="small")
