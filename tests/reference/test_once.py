"""Values that are computed once, before the first step, and found in the cache afterwards."""

from __future__ import annotations

import gc
import json
import shutil
import weakref
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from toy_runs import Run, assert_same_run, losses

from smollm3_finetune import finetune, load_model
from smollm3_finetune.errors import ConfigError, IncompatibleError, ModelError
from smollm3_finetune.reference.stored import Stored, write


def entries(tmp_path: Path) -> list[Path]:
    return sorted(p for p in (tmp_path / "cache" / "reference").glob("*") if p.is_dir())


def reset(toy: ModuleType) -> None:
    toy.seen.clear()
    toy.forwards.clear()


CASES = [
    pytest.param("scale", "base", {}, id="base-flat"),
    pytest.param("scale", "base", {"padding": "always"}, id="base-padded"),
    pytest.param("scale", "base", {"packing": True}, id="base-packed"),
    pytest.param("scale", "base", {"group_by_length": True}, id="base-grouped"),
    pytest.param("full", "start", {"learning_rate": 1e-3}, id="start"),
]


@pytest.mark.parametrize(("adapter", "reference", "settings"), CASES)
def test_once_is_each_step_up_to_rounding_and_runs_no_forward_the_second_time(
    run: Run, toy: ModuleType, tmp_path: Path, adapter: str, reference: str, settings: dict[str, Any]
) -> None:
    run("each", adapter, reference=reference, **settings)
    each = [r for _, _, r in toy.seen]
    assert len(toy.forwards) == len(each) and not entries(tmp_path)
    reset(toy)
    run("once", adapter, reference=reference, when="once", **settings)
    once = [r for _, _, r in toy.seen]
    assert sum(toy.forwards) == 12, "each pair is computed once"
    assert len(once) == len(each)
    for found, right in zip(once, each, strict=True):
        torch.testing.assert_close(found, right, rtol=1e-5, atol=1e-4)
    assert losses("once") == pytest.approx(losses("each"), rel=1e-3)
    reset(toy)
    run("again", adapter, reference=reference, when="once", **settings)
    assert toy.forwards == [], "the values are found in the cache"
    assert_same_run("once", "again")
    assert len(entries(tmp_path)) == 1
