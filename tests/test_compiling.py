"""`train.compile=true`: the same losses, and an early word where there is no compiler."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

SHORT = ("train", "--adapter", "full", "--max-steps", "3", "--batch-size", "2", "--json", "--set", "data.limit=8",
         "--set", "train.sample_tokens=1", "--max-length", "64", "--set", "train.warmup=0")  # fmt: skip


def losses(run: str) -> list[float]:
    return [json.loads(line)["loss"] for line in Path(run, "metrics.jsonl").read_text().splitlines()]


@pytest.mark.skipif(not (shutil.which("g++") or shutil.which("c++")), reason="needs a C++ compiler")
def test_a_compiled_run_has_the_losses_of_one_that_is_not(cli: Any) -> None:
    from torch._dynamo.utils import counters

    counters.clear()
    assert cli(*SHORT, "--output", "plain").code == 0
    assert not counters["stats"]
    compiled = cli(*SHORT, "--output", "compiled", "--set", "train.compile=true")
    assert compiled.code == 0, compiled.stderr
    assert counters["stats"]["unique_graphs"] > 0
    assert "dynamo" not in compiled.stderr
    # Fused operations round otherwise, in float32.
    assert losses("compiled") == pytest.approx(losses("plain"), rel=1e-5)


def test_no_compiler_is_told_before_anything_is_read(cli: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    result = cli(*SHORT, "--output", "out", "--set", "train.compile=true")
    assert result.code == 4
    assert "train.compile=true needs a C++ compiler" in result.stderr
    assert "apt install g++" in result.stderr
    assert not Path("out").exists()
