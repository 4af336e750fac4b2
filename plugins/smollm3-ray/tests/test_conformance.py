"""The launcher passes the conformance kit. Tests that start Ray are long: each starts its processes anew."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import pytest

from smollm3_finetune.testing import LauncherConformance


class TestRay(LauncherConformance):
    component = "ray"
    options: ClassVar = {"workers": 2, "max_failures": 0}

    @pytest.mark.long
    def test_it_starts_each_process_once(self, tmp_path: Path, needs_ray: None) -> None:
        super().test_it_starts_each_process_once(tmp_path)

    @pytest.mark.long
    @pytest.mark.parametrize("how", ["exit", "kill"])
    def test_a_failed_process_ends_all_and_is_an_error(self, tmp_path: Path, how: str, needs_ray: None) -> None:
        super().test_a_failed_process_ends_all_and_is_an_error(tmp_path, how)

    @pytest.mark.long
    def test_the_same_launch_starts_again(self, tmp_path: Path, needs_ray: None) -> None:
        super().test_the_same_launch_starts_again(tmp_path)

    @pytest.mark.long
    def test_a_request_to_stop_ends_all_processes(self, tmp_path: Path, needs_ray: None) -> None:
        super().test_a_request_to_stop_ends_all_processes(tmp_path)
