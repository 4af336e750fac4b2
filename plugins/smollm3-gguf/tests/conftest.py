"""Fixtures for the tests of the loader."""

from __future__ import annotations

import contextlib
import importlib.util
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from smollm3_finetune.api import BuildContext, Purpose
from smollm3_finetune.testing import Cache

torch.set_num_threads(1)


class Recorder:
    """A `Progress` that records its calls."""

    def __init__(self) -> None:
        self.tasks: list[str] = []
        self.steps = 0
        self.total: int | None = None
        self.said: list[str] = []

    @contextlib.contextmanager
    def task(self, description: str, total: int | None = None) -> Iterator[Any]:
        self.tasks.append(description)
        self.steps, self.total = 0, total
        yield self

    def advance(self, steps: int = 1) -> None:
        self.steps += steps

    def say(self, message: str) -> None:
        self.said.append(message)


def beside(name: str) -> ModuleType:
    """The module `name.py` in this folder."""
    spec = importlib.util.spec_from_file_location(f"smollm3_gguf_{name}", Path(__file__).with_name(f"{name}.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def tiny_gguf() -> ModuleType:
    """The module `tiny_gguf.py` in this folder."""
    return beside("tiny_gguf")


@pytest.fixture(scope="session")
def exported() -> ModuleType:
    """The module `exported.py` in this folder."""
    return beside("exported")


@pytest.fixture(scope="session")
def edit_gguf() -> ModuleType:
    """The module `edit_gguf.py` in this folder."""
    return beside("edit_gguf")


@pytest.fixture
def context(tmp_path: Path) -> Callable[..., BuildContext]:
    """Factory of BuildContexts for the CPU, with a separate cache for each test and a recording progress."""

    def make(cache: Path | None = None) -> BuildContext:
        return BuildContext(
            purpose=Purpose.TRAIN,
            device="cpu",
            dtype="float32",
            seed=0,
            cache=Cache(cache or tmp_path / "cache"),
            progress=Recorder(),
        )

    return make
