"""Pairs of answers, the plugin files of their objective, and what a run on them wrote."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

HERE = Path(__file__).parent
EXAMPLES = HERE.parents[1] / "examples"
FILES = (HERE / "toy_pairs.py", EXAMPLES / "scale_adapter.py")
NAMES = ("river", "stone", "cloud", "lamp", "forest", "glass")


def write_pairs(file: Path, count: int = 12) -> None:
    """Pairs whose answers have different lengths."""
    rows = [
        {
            "prompt": f"Say something about the {NAMES[n % 6]} in {n} words.",
            "chosen": f"The {NAMES[n % 6]} is calm" + " and wide" * (n % 4) + ".",
            "rejected": "No" + " never" * (n % 3) + ".",
        }
        for n in range(count)
    ]
    file.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")


Run = Callable[..., dict[str, Any]]


def losses(output: str) -> list[float]:
    """The loss of each step."""
    lines = Path(output, "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [row["loss"] for row in map(json.loads, lines) if "loss" in row]


def weights(output: str) -> dict[str, Tensor]:
    """The tensors of the saved adapter."""
    from safetensors.torch import load_file

    files = sorted(Path(output, "adapter").glob("*.safetensors"))
    assert files
    return {f"{file.name}:{name}": t for file in files for name, t in load_file(file).items()}


def assert_same_run(one: str, other: str) -> None:
    """Both runs have the same losses and adapters, bit for bit."""
    assert losses(one) == losses(other)
    ours, theirs = weights(one), weights(other)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
