"""Whether Ray can be imported, and where the processes of tests find the modules beside this file."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

import pytest


@pytest.fixture(scope="module")
def needs_ray() -> None:
    """Skip a test that starts Ray if it is not installed; `nox -s ray` sets a variable and fails instead."""
    if importlib.util.find_spec("ray") is None:
        if os.environ.get("SMOLLM3_RAY_REQUIRED"):
            pytest.fail("ray cannot be imported")
        pytest.skip("ray is not installed: pip install 'ray[train,tune]'")


@pytest.fixture
def beside(monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the tests, from which processes can import."""
    folder = Path(__file__).parent
    path = os.pathsep.join(filter(None, (str(folder), os.environ.get("PYTHONPATH"))))
    monkeypatch.setenv("PYTHONPATH", path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    return folder
