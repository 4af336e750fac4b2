"""Under several processes, every one computes with the grids of the first, and what they ship is that of one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file
from shipped_models import PLUGIN, trained

pytest.importorskip("peft")


def test_the_grids_are_those_of_the_first_process(monkeypatch: pytest.MonkeyPatch) -> None:
    alone = trained("grid-export").adapted
    assert alone is not None
    other = {name: {k: 2 * v for k, v in grid.items()} for name, grid in alone.grids().items()}  # type: ignore[attr-defined]

    def receive(values: list[object]) -> None:
        assert values == [None], "only the first process sends"
        values[0] = other

    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "get_world_size", lambda: 2)
    monkeypatch.setattr(dist, "get_rank", lambda: 1)
    monkeypatch.setattr(dist, "broadcast_object_list", receive)
    found = trained("grid-export").adapted
    assert found is not None
    grids = found.grids()  # type: ignore[attr-defined]
    assert grids.keys() == other.keys()
    for name, grid in other.items():
        assert torch.equal(grids[name]["scale"], grid["scale"])
        assert torch.equal(found.layers[name].grid["scale"], grid["scale"])  # type: ignore[attr-defined]


@pytest.mark.long
@pytest.mark.plugins
@pytest.mark.parametrize("ship_as", ["grid", "grid-export"])
def test_two_processes_train_what_one_ships(ship_as: str, isolated: Path, run_cli: Callable[..., Any]) -> None:
    """The same losses and grids; and what each writes equals bit for bit what it computed with."""
    command = (
        *("train", "-p", PLUGIN, "--model", "tiny", "--adapter", "lora", "--device", "cpu", "--ship-as", ship_as),
        *("--max-length", "64", "--max-steps", "4", "--set", "data.limit=60", "--set", "train.sample_tokens=1"),
    )
    alone = run_cli(*command, "--batch-size", "4", "--output", "one", "--json")
    assert alone.code == 0, alone.stderr
    torchrun = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    both = subprocess.run(
        [*torchrun, "-m", "smollm3_finetune.main", *command, "--batch-size", "2", "--output", "two", "--json"],
        env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert both.returncode == 0, both.stderr
    one, two = json.loads(alone.stdout), json.loads(both.stdout)
    assert json.loads(Path("two/versions.json").read_text())["processes"] == 2
    losses = [
        [json.loads(line)["loss"] for line in Path(run, "metrics.jsonl").read_text().splitlines()]
        for run in ("one", "two")
    ]
    assert len(losses[0]) == 4 and losses[1] == pytest.approx(losses[0], rel=1e-3)  # a value may round to the next code
    assert two["after"]["held_out_loss"] == pytest.approx(one["after"]["held_out_loss"], rel=1e-3)
    assert two["after"]["held_out_loss"] < two["before"]["held_out_loss"]
    files = [Path(run) / "adapter" / "grids.safetensors" for run in ("one", "two")]
    assert [file.exists() for file in files] == [ship_as == "grid-export"] * 2
    if ship_as == "grid-export":
        grids = [load_file(file) for file in files]
        assert grids[0].keys() == grids[1].keys() and grids[0]
        assert all(torch.equal(value, grids[1][name]) for name, value in grids[0].items())
    for run in ("one", "two"):
        command = ("merge", run) if ship_as == "grid" else ("export", run, "--to", ship_as)
        done = run_cli(*command, "-p", PLUGIN, "--output", f"{run}-shipped", "--json")
        assert done.code == 0, done.stderr
        about = json.loads(done.stdout)
        if ship_as == "grid":
            assert about["shipped"]["compared"] == "merged model, loaded with the quantizer"
            assert about["shipped"]["layers"] > 0
        else:
            (check,) = (c for c in about["checks"] if c["name"] == "trained weights")
            assert check["passed"] and check["figures"]["layers"] > 0
