"""`train.compile=true`: checks what torch.compile needs, and configures it for batches of different shapes."""

from __future__ import annotations

import importlib.util
import logging
import os
import shutil
import sys
from typing import Any

from smollm3_finetune.config.schema import TrainConfig
from smollm3_finetune.errors import MissingRequirementError

BACKEND = "inductor"
"""The compiler, by torch's name: the default of torch.compile."""
VARIANTS = 64
"""How many times a function may be compiled: with and without gradients, with and without RoPE, for a short last batch.

torch's default limit of 8 is reached within one pass; torch then stops compiling the function.
"""


def check_compiler(train: TrainConfig, device: str) -> None:
    """Raises MissingRequirementError if torch.compile is enabled and cannot generate code for `device`."""
    if not train.compile:
        return
    compiler = os.environ.get("CXX") or ("clang++" if sys.platform == "darwin" else "g++")  # torch's own rule
    if device == "cpu" and shutil.which(compiler) is None:
        raise MissingRequirementError(
            f"train.compile=true needs a C++ compiler, but {compiler!r} was not found",
            hint="install g++, or set another compiler: CXX=clang++ smollm3 train …",
        )
    if device.startswith("cuda") and importlib.util.find_spec("triton") is None:
        raise MissingRequirementError(
            "train.compile=true needs triton on a GPU, but it is not installed", hint="pip install triton"
        )


def compiled() -> dict[str, Any]:
    """The arguments of the Trainer that compile the model."""
    return {"torch_compile": True, "torch_compile_backend": BACKEND, "tf32": False}  # with compiling, it enables TF32


def configure_compile() -> None:
    """Allow the number of variants that a run needs, and hide torch's warnings about compiling."""
    import torch._dynamo

    # The name of the option in torch 2.6; newer versions accept it.
    torch._dynamo.config.cache_size_limit = max(torch._dynamo.config.cache_size_limit, VARIANTS)
    logging.getLogger("torch._dynamo").setLevel(logging.ERROR)
