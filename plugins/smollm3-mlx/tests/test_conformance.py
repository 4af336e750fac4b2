"""The exporter passes the conformance kit, in full precision and, with mlx-lm, quantized."""

from __future__ import annotations

import pytest
from smollm3_mlx.installed import INSTALL, installed

from smollm3_finetune.testing import ExporterConformance


class TestMlx(ExporterConformance):
    component = "mlx"
    precision = 5e-3  # bfloat16


@pytest.mark.skipif(installed() is None, reason=INSTALL)
class TestMlxEightBits(ExporterConformance):
    component = "mlx"
    options = {"bits": 8, "group_size": 32}  # noqa: RUF012
    precision = 1e-2
