"""The format in NumPy, without any code of the plugin, as a fixture: test modules cannot import each other."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def numpy_awq() -> ModuleType:
    """The module `numpy_awq` beside this file."""
    spec = importlib.util.spec_from_file_location("numpy_awq", Path(__file__).parent / "numpy_awq.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
