"""Runs of `smollm3 train` in float64, several in one process, for tests that compare processes exactly.

    python exact_runs.py RUNS.json                                 in one process
    torchrun --standalone --nproc-per-node 2 exact_runs.py RUNS.json

RUNS.json is a list of argument lists. transformers computes the normalization of SmolLM3 and the sum of the losses that
it logs in float32, whose rounding can enlarge a difference of 1e-16 to 1e-7. Here both have float64.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from transformers.models.smollm3 import modeling_smollm3

from smollm3_finetune.main import main
from smollm3_finetune.train.distributed import processes


def normalized(norm: Any, values: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.rms_norm(values, values.shape[-1:], norm.weight, norm.variance_epsilon)


def run(arguments: list[str]) -> None:
    """Raises SystemExit if the run fails."""
    try:
        main(arguments)
    except SystemExit as e:
        if e.code:
            raise


if __name__ == "__main__":
    torch.set_default_dtype(torch.float64)  # that of the Trainer's sum of losses
    modeling_smollm3.SmolLM3RMSNorm.forward = normalized
    shut_down, processes.shut_down_processes = processes.shut_down_processes, lambda: None
    for arguments in json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")):
        run(arguments)
    shut_down()
