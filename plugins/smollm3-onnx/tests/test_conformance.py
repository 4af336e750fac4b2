"""The exporter passes the conformance kit."""

from __future__ import annotations

import pytest

from smollm3_finetune.testing import ExporterConformance

pytest.importorskip("onnxscript", reason="pip install ./plugins/smollm3-onnx[onnx,onnxruntime]")


class TestOnnx(ExporterConformance):
    component = "onnx"

    @pytest.fixture(autouse=True)
    def traced_once(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Reuse the graph of the small model, whose tracing takes 20 seconds; a test of its own traces it twice."""
        from smollm3_onnx import exporter

        original = exporter.traced
        monkeypatch.setattr(exporter, "traced", lambda model: _TRACED.setdefault(0, original(model)))


_TRACED: dict[int, object] = {}
