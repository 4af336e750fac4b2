"""Runs of `smollm3 train` in float64, several in one process, for tests that compare processes exactly.

    torchrun --standalone --nproc-per-node 2 exact_runs.py RUNS.json [DTYPE]

RUNS.json is a list of argument lists. transformers computes the normalization of SmolLM3 and the sum of the losses that
it logs in float32, whose rounding can enlarge a difference of 1e-16 to 1e-7. Here both have float64, unless DTYPE is
another one.
"""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers.models.smollm3 import modeling_smollm3

from smollm3_finetune.main import main
from smollm3_finetune.train.distributed import processes


def normalized(norm: Any, values: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.rms_norm(values, values.shape[-1:], norm.weight, norm.variance_epsilon)


@contextlib.contextmanager
def exact() -> Iterator[None]:
    """Float64 throughout, while the context is open."""
    rounded, torch_default = modeling_smollm3.SmolLM3RMSNorm.forward, torch.get_default_dtype()
    modeling_smollm3.SmolLM3RMSNorm.forward = normalized
    torch.set_default_dtype(torch.float64)  # that of the Trainer's sum of losses
    try:
        yield
    finally:
        modeling_smollm3.SmolLM3RMSNorm.forward = rounded
        torch.set_default_dtype(torch_default)


def run(runs: Sequence[Sequence[str]], dtype: str = "float64") -> None:
    """Raises SystemExit if a run fails."""
    with exact() if dtype == "float64" else contextlib.nullcontext():
        for arguments in runs:
            try:
                main(list(arguments))
            except SystemExit as e:
                if e.code:
                    raise


if __name__ == "__main__":
    shut_down, processes.shut_down_processes = processes.shut_down_processes, lambda: None  # the runs share a group
    run(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")), *sys.argv[2:])
    shut_down()
