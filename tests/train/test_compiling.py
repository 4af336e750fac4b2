"""`train.compile=true`: the same losses, and an early error if there is no compiler."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from smollm3_finetune.config.schema import TrainConfig
from smollm3_finetune.errors import MissingRequirementError
from smollm3_finetune.train import compiling
from smollm3_finetune.train.compiling import check_compiler

SHORT = ("train", "--adapter", "full", "--max-steps", "3", "--batch-size", "2", "--json", "--set", "data.limit=8",
         "--set", "train.sample_tokens=1", "--max-length", "64", "--set", "train.warmup=0")  # fmt: skip


def losses(run: str) -> list[float]:
    return [json.loads(line)["loss"] for line in Path(run, "metrics.jsonl").read_text().splitlines()]


@pytest.mark.skipif(shutil.which(os.environ.get("CXX", "g++")) is None, reason="needs a C++ compiler")
@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.long)])
def test_a_compiled_run_has_the_same_losses(cli: Any, backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """`inductor`, the default, generates code; `aot_eager` runs the graphs of forward and backward as they are."""
    from torch._dynamo.utils import counters

    monkeypatch.setattr(compiling, "BACKEND", backend)

    counters.clear()
    assert cli(*SHORT, "--output", "plain").code == 0
    assert not counters["stats"]
    compiled = cli(*SHORT, "--output", "compiled", "--set", "train.compile=true")
    assert compiled.code == 0, compiled.stderr
    assert counters["stats"]["unique_graphs"] > 0
    assert "dynamo" not in compiled.stderr
    # Fused operations round differently in float32.
    assert losses("compiled") == pytest.approx(losses("plain"), rel=1e-5)


def test_a_missing_compiler_is_reported_before_weights_are_read(cli: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    result = cli(*SHORT, "--output", "out", "--set", "train.compile=true", "--dry-run")
    assert result.code == 4
    assert "train.compile=true needs a C++ compiler, but 'no-such-compiler' was not found" in result.stderr
    assert "CXX=clang++" in result.stderr
    assert cli(*SHORT, "--output", "out", "--dry-run").code == 0


def test_a_compiler_in_the_environment_is_used(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    mine = tmp_path / "my-c++"
    mine.write_text("#!/bin/sh\n")
    mine.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(MissingRequirementError):
        check_compiler(TrainConfig(compile=True), "cpu")
    monkeypatch.setenv("CXX", str(mine))
    check_compiler(TrainConfig(compile=True), "cpu")
    check_compiler(TrainConfig(), "cuda:0")
