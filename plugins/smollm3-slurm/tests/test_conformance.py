"""The launcher passes the conformance kit, with stand-ins for Slurm's commands."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import pytest

from smollm3_finetune.testing import LauncherConformance

pytestmark = pytest.mark.plugins
pytest_plugins = ["smollm3_finetune.testing.fixtures"]


@pytest.mark.usefixtures("cluster")
class TestSlurm(LauncherConformance):
    component = "slurm"
    options: ClassVar[Mapping[str, Any]] = {"processes": 2}
    submits = True
