"""Runs of the toy objective `toy-pairs` on pairs of answers."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from toy_runs import FILES, Run, write_pairs

from smollm3_finetune import finetune


@pytest.fixture
def toy(isolated: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The plugin files and `pairs.jsonl` in the working directory; returns the module of the objective."""
    for file in FILES:
        (isolated / file.name).write_text(file.read_text(encoding="utf-8"), encoding="utf-8")
        monkeypatch.delitem(sys.modules, file.stem, raising=False)
    write_pairs(isolated / "pairs.jsonl")
    monkeypatch.syspath_prepend(str(isolated))
    import toy_pairs

    return toy_pairs


@pytest.fixture
def run(toy: ModuleType) -> Run:
    """Trains on the pairs: `run("output", "scale", reference="start", when="once", max_steps=4)`; resume=True."""

    def train(output: str, adapter: Any = "scale", **more: Any) -> dict[str, Any]:
        files = ("toy_pairs.py", "scale_adapter.py")
        if more.pop("resume", False):
            return finetune(resume=output, quiet=True, plugins=files)
        objective = {"name": "toy-pairs", "reference": more.pop("reference", "base"), **more.pop("objective", {})}
        when = {"reference": more.pop("when")} if "when" in more else {}
        settings = {**when, "batch_size": 2, "max_steps": 4, "sample_tokens": 1, "warmup": 0, "learning_rate": 0.01}
        top = {"model": "tiny", **{key: more.pop(key) for key in ("quant", "model", "dtype") if key in more}}
        return finetune(
            top.pop("model"), adapter=adapter, objective=objective, device="cpu", quiet=True, output=output, seed=1,
            data={"path": "pairs.jsonl", "max_length": 64, "held_out": 0.25}, train={**settings, **more},
            plugins=files, **top,
        )  # fmt: skip

    return train
