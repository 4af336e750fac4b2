"""Tests: the promises of every exporter (conformance kit), and what this exporter refuses."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

import pytest
from smollm3_finetune.api import IncompatibleError, directory_source
from smollm3_finetune.testing import ExporterConformance

from smollm3_npz import check
from smollm3_npz.options import NpzOptions


class TestNpz(ExporterConformance):
    """The tests of the kit: the same bytes twice, checks that find altered files, weights that are read back."""

    component = "npz"


class TestNpzIn16Bits(ExporterConformance):
    component = "npz"
    options: ClassVar[Mapping[str, int]] = {"bits": 16}
    precision = 1e-3


def test_a_model_without_a_vocabulary_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}", encoding="utf-8")
    with pytest.raises(IncompatibleError, match="no vocab_size"):
        check(NpzOptions(), directory_source(tmp_path, ref="mine"))
