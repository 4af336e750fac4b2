"""`train.compile=true`: what torch.compile needs on this machine, and how it is set for batches that all differ."""

from __future__ import annotations

import importlib.util
import logging
import os
import shutil
import sys

from smollm3_finetune.config.schema import TrainConfig
from smollm3_finetune.errors import MissingRequirementError

VARIANTS = 64
"""How often one function may be compiled: with and without gradients, with and without RoPE, for a last, short batch.

torch's own limit of 8 is reached within one pass; from then on it does not compile that function any more.
"""


def check_compiler(train: TrainConfig, device: str) -> None:
    """Raises MissingRequirementError where torch.compile is asked for and could not make code for `device`."""
    if not train.compile:
        return
    compiler = os.environ.get("CXX") or ("clang++" if sys.platform == "darwin" else "g++")  # as torch looks for it
    if device == "cpu" and shutil.which(compiler) is None:
        raise MissingRequirementError(
            f"train.compile=true needs a C++ compiler, and there is no {compiler!r} here",
            hint="install g++, or name another one: CXX=clang++ smollm3 train …",
        )
    if device.startswith("cuda") and importlib.util.find_spec("triton") is None:
        raise MissingRequirementError("train.compile=true needs triton on a GPU", hint="pip install triton")


def configure_compile() -> None:
    """Allow as many variants as a run needs, and keep torch's notes on compiling from its user."""
    import torch._dynamo

    # By the name that torch 2.6 has for it, and newer ones understand.
    torch._dynamo.config.cache_size_limit = max(torch._dynamo.config.cache_size_limit, VARIANTS)
    logging.getLogger("torch._dynamo").setLevel(logging.ERROR)
