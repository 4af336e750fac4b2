"""Muon, LoRA+ and LoRA-FA on quantized and unquantized bases: the loss falls, and a killed run resumes bit for bit."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from smollm3_finetune.testing.commands import OFFLINE, Result

Cli = Callable[..., Result]
EXAMPLES = Path(__file__).parents[2] / "examples" / "plugins"
FOLDERS = (EXAMPLES / "smollm3-muon", EXAMPLES / "smollm3-lora-plus")
INSTALLED = {d.metadata["Name"] for d in distributions()}
GIVEN = tuple(a for f in FOLDERS if f.name not in INSTALLED for a in ("-p", f.name.replace("-", "_")))
SMALL = ("--device", "cpu", "--batch-size", "2", "--set", "data.limit=24", "--set", "data.max_length=64",
         "--set", "train.sample_tokens=1", "--set", "train.report=false", "--set", "calibration.rows=8",
         "--set", "calibration.length=64")  # fmt: skip


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    for folder in FOLDERS:
        monkeypatch.syspath_prepend(str(folder))


def losses(run: Path) -> list[float]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if "loss" in line]


def adapter(run: Path) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = load_file(run / "adapter" / "adapter_model.safetensors")
    return found


@pytest.mark.long
@pytest.mark.parametrize("method", ["lora", "dora"])
@pytest.mark.parametrize("quant", ["none", "bnb-4bit", "gptq"])
@pytest.mark.parametrize("optimizer", ["muon", "lora-plus", "lora-fa"])
def test_the_loss_falls_and_a_resumed_run_is_the_same(
    cli: Cli, optimizer: str, quant: str, method: str, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: Any
) -> None:
    monkeypatch.setenv("SMOLLM3_CACHE", str(tmp_path_factory.getbasetemp() / "optimizer-cache"))  # of quantized bases
    pytest.importorskip({"bnb-4bit": "bitsandbytes", "gptq": "gptqmodel"}.get(quant, "torch"))
    chosen = (*GIVEN, "--optimizer", optimizer, "--quant", quant, "--adapter", method, *SMALL)
    whole = cli("train", *chosen, "--max-steps", "8", "--output", "whole", "--json").report()
    found = losses(Path("whole"))
    assert min(found[-2:]) < found[0]
    assert whole["after"]["held_out_loss"] < whole["before"]["held_out_loss"]
    assert (whole["optimizer"]["frozen_parameters"] > 0) == (optimizer == "lora-fa")
    first = cli("train", *chosen, "--max-steps", "8", "--set", "train.save_every=4", "--output", "parts", "--json")
    assert first.code == 0, first.stderr
    _back_to("parts", 4)
    again = cli("train", *GIVEN, "--resume", "parts", "--json")
    assert again.code == 0, again.stderr
    one, other = adapter(Path("whole")), adapter(Path("parts"))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


def _back_to(run: str, step: int) -> None:
    """Leave what a run has that was killed after this step."""
    import shutil

    for checkpoint in Path(run, "checkpoints").glob("checkpoint-*"):
        if checkpoint.name != f"checkpoint-{step}":
            shutil.rmtree(checkpoint)
    for name in ("report.json", "after.json", "trained.json"):
        Path(run, name).unlink(missing_ok=True)
    shutil.rmtree(Path(run, "adapter"))


@pytest.mark.long
@pytest.mark.parametrize("optimizer", ["muon", "lora-plus"])
def test_a_killed_process_resumes_bit_for_bit(cli: Cli, optimizer: str, tmp_path: Path) -> None:
    chosen = (*GIVEN, "--optimizer", optimizer, "--set", "train.save_every=1", "--max-steps", "40", *SMALL)
    path = os.pathsep.join((*map(str, FOLDERS), *sys.path))
    killed = subprocess.Popen(
        [sys.executable, "-m", "smollm3_finetune.main", "train", *chosen, "--output", "killed"],
        env={**os.environ, **OFFLINE, "PYTHONPATH": path}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    deadline = time.monotonic() + 300
    while not Path("killed/checkpoints/checkpoint-3").is_dir() and killed.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    killed.send_signal(signal.SIGKILL)
    assert killed.wait(60) == -signal.SIGKILL
    assert not Path("killed/report.json").exists()
    done = cli("train", *GIVEN, "--resume", "killed", "--json")
    assert done.code == 0, done.stderr
    assert cli("train", *chosen, "--output", "whole", "--json").code == 0
    one, other = adapter(Path("whole")), adapter(Path("killed"))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)
