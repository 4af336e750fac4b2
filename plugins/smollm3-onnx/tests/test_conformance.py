"""The exporter passes the conformance kit."""

from __future__ import annotations

from typing import Any

import pytest

from smollm3_finetune.testing import ExporterConformance

pytest.importorskip("onnxscript", reason="pip install ./plugins/smollm3-onnx[onnx,onnxruntime]")


class TestOnnx(ExporterConformance):
    component = "onnx"

    @pytest.fixture(autouse=True)
    def traced_once(self, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
        """Reuse the graph of the small model, except to compare two of them: tracing it takes 10 seconds."""
        from smollm3_onnx import exporter

        original = exporter.traced

        def traced(model: Any) -> Any:
            if not TRACED:
                TRACED.append(original(model))
            return TRACED[0]

        if "twice" not in request.node.name:
            monkeypatch.setattr(exporter, "traced", traced)


TRACED: list[Any] = []
