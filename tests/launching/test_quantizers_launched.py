"""Quantized models on two processes that a launcher starts: the losses and adapter of one process, half of the bytes.

Every bundled quantizer that FSDP 2 can divide, with LoRA and DoRA, by the commands that users type.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from safetensors.torch import load_file

from smollm3_finetune import load_model
from smollm3_finetune.train.distributed.held import held_weights

AUTOGPTQ = Path(__file__).parents[2] / "plugins" / "smollm3-gptq" / "tests" / "autogptq-0.7.1-4bit-32g"
MODELS = {"gptq": str(AUTOGPTQ)}
"""Quantizer to its model; default: the built-in one."""
QUANTIZERS = ("none", "bnb-4bit", "gptq", "hqq", "torchao-int8", "bnb-8bit", "compressed-tensors")
ROUNDING = 1e-6
"""Relative, of losses: sums of float32 in another order, and losses are logged in float32."""
LEARNED = 1e-3
"""Of the adapter, relative to its norm: AdamW divides a gradient by its size, so rounding of small ones stays."""
PADDING = 4
"""Bytes of a quantized tensor that FSDP 2 adds to divide it evenly, at most, for each process."""
RUN = ("--device", "cpu", "--max-length", "64", "--set", "data.limit=30", "--set", "train.sample_tokens=2")
FSDP = ("--launcher", "accelerate", "--launcher-opt", "profile=fsdp2", "--launcher-opt", "processes=2")
TORCHRUN = ("--launcher", "torchrun", "--launcher-opt", "processes=2")
Cli = Callable[..., Any]

pytestmark = [pytest.mark.plugins, pytest.mark.long]


def command(quant: str, adapter: str, *more: str) -> tuple[str, ...]:
    rows = ("--data", str(chat_rows())) if quant in MODELS else ()
    model = ("--model", MODELS.get(quant, "tiny"))
    return ("train", *model, *rows, "--quant", quant, "--adapter", adapter, *RUN, *more)


def chat_rows() -> Path:
    """Rows in a file: the built-in ones are those of the built-in model."""
    path = Path("rows.jsonl")
    if not path.exists():
        conversations = (
            [{"role": "user", "content": f"What is {n} + {n}?"}, {"role": "assistant", "content": f"It is {2 * n}."}]
            for n in range(30)
        )
        path.write_text("".join(json.dumps({"messages": turns}) + "\n" for turns in conversations))
    return path.resolve()


def trained(cli: Cli, *arguments: str) -> dict[str, Any]:
    result = cli(*arguments, "--json")
    assert result.code == 0, result.stderr
    report: dict[str, Any] = json.loads(result.stdout)
    return report


def losses(run: str) -> list[float]:
    return [json.loads(line)["loss"] for line in Path(run, "metrics.jsonl").read_text().splitlines()]


def adapter_of(run: str) -> torch.Tensor:
    """All numbers of the saved adapter in one vector."""
    (file,) = Path(run, "adapter").glob("*.safetensors")
    return torch.cat([tensor.double().flatten() for _, tensor in sorted(load_file(file).items())])


def assert_same_training(one: str, other: str) -> None:
    assert losses(other) == pytest.approx(losses(one), rel=ROUNDING)
    ours, theirs = adapter_of(other), adapter_of(one)
    assert float((ours - theirs).norm() / theirs.norm()) < LEARNED


@pytest.mark.parametrize("adapter", ["lora", "dora"])
@pytest.mark.parametrize("quant", QUANTIZERS)
def test_launched_processes_train_as_one_and_each_holds_half(cli: Cli, quant: str, adapter: str) -> None:
    steps = ("--max-steps", "4", "--learning-rate", "2e-3")
    trained(cli, *command(quant, adapter, *steps, "--batch-size", "4", "--output", "one"))
    two = ("--batch-size", "2", "--output")
    divided = trained(cli, *command(quant, adapter, *steps, *FSDP, *two, "divided"))
    trained(cli, *command(quant, adapter, *steps, *TORCHRUN, *two, "whole"))
    assert losses("one")[-1] < losses("one")[0] - 0.05, "the steps must do something"
    assert_same_training("one", "divided")
    assert_same_training("one", "whole")

    loaded = load_model(
        MODELS.get(quant, "tiny"), quant=quant, adapter_path="one/adapter", purpose="train", dtype="float32"
    )
    everything = held_weights(loaded.model).bytes
    padding = PADDING * sum(1 for _ in loaded.model.parameters())
    held = divided["weights_held"]
    for process, not_shared in zip(held["processes"], held["not_shared"], strict=True):
        assert not_shared < 0.01 * everything
        half = (everything - not_shared) / 2
        assert half <= process - not_shared <= half + padding


@pytest.mark.parametrize("quant", QUANTIZERS[:5])
def test_a_killed_process_ends_the_run_which_resumes_exactly(cli: Cli, quant: str) -> None:
    steps = ("--max-steps", "40", "--batch-size", "2", "--set", "train.save_every=2")
    launched = command(quant, "lora", *steps, *FSDP)
    with Path("log").open("w") as log:
        started = [sys.executable, "-m", "smollm3_finetune.main", *launched, "--output", "run"]
        killed = subprocess.Popen(started, stderr=log, stdout=log)
        try:
            while not Path("run/checkpoints/checkpoint-4").is_dir() and killed.poll() is None:
                time.sleep(0.05)
            workers = [p for p in psutil.Process(killed.pid).children(recursive=True) if "--launched" in p.cmdline()]
            (rank,) = [p for p in workers if p.environ().get("RANK") == "1"]
            os.kill(rank.pid, signal.SIGKILL)
            code = killed.wait(timeout=240)
        finally:
            if killed.poll() is None:
                killed.kill()
    said = Path("log").read_text()
    assert code == 1, said
    assert "Traceback" not in said
    error, hint = said.splitlines()[-2:]
    assert error.startswith("error: process 1 was killed by SIGKILL; step ")
    assert not Path("run/adapter").exists()
    resumed = cli(*hint.partition("smollm3 ")[2].split())
    assert resumed.code == 0, resumed.stderr
    trained(cli, *launched, "--output", "uninterrupted")
    assert losses("run") == losses("uninterrupted")
    assert torch.equal(adapter_of("run"), adapter_of("uninterrupted"))
