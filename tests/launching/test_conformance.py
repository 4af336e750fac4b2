"""The built-in launchers pass the conformance kit."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import pytest

from smollm3_finetune.testing import LauncherConformance


class TestNone(LauncherConformance):
    component = "none"


class TestTorchrun(LauncherConformance):
    component = "torchrun"
    options: ClassVar[Mapping[str, Any]] = {"processes": 2}

    @pytest.mark.long
    @pytest.mark.parametrize("how", ["exit", "kill"])
    def test_a_failed_process_ends_all_and_is_an_error(self, tmp_path: Path, how: str) -> None:
        super().test_a_failed_process_ends_all_and_is_an_error(tmp_path, how)

    @pytest.mark.long
    def test_the_same_launch_starts_again(self, tmp_path: Path) -> None:
        super().test_the_same_launch_starts_again(tmp_path)


@pytest.mark.long
class TestAccelerate(LauncherConformance):
    component = "accelerate"
    options: ClassVar[Mapping[str, Any]] = {"processes": 2}


@pytest.mark.long
class TestAccelerateFSDP2(LauncherConformance):
    component = "accelerate"
    options: ClassVar[Mapping[str, Any]] = {"processes": 2, "profile": "fsdp2"}
