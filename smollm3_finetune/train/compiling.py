"""`train.compile=true`: what torch.compile needs on this machine, and how it is set for batches that all differ."""

from __future__ import annotations

import importlib.util
import logging

from smollm3_finetune.api import Purpose
from smollm3_finetune.config.schema import TrainConfig
from smollm3_finetune.errors import MissingRequirementError
from smollm3_finetune.negotiation import environment

VARIANTS = 64
"""How often one function may be compiled: with and without gradients, with and without RoPE, for a last, short batch.

torch's own limit of 8 is reached within one pass; from then on it does not compile that function any more.
"""


def check_compiler(train: TrainConfig, device: str) -> None:
    """Raises MissingRequirementError where torch.compile is asked for and could not make code for `device`."""
    if not train.compile:
        return
    if "c++" not in environment(device, Purpose.TRAIN).tools:
        raise MissingRequirementError(
            "train.compile=true needs a C++ compiler, and none is found here", hint="apt install g++"
        )
    if device.startswith("cuda") and importlib.util.find_spec("triton") is None:
        raise MissingRequirementError("train.compile=true needs triton on a GPU", hint="pip install triton")


def settle_compiler() -> None:
    """Allow as many variants as a run needs, and keep torch's notes on compiling from its user."""
    import torch._dynamo

    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, VARIANTS)
    logging.getLogger("torch._dynamo").setLevel(logging.ERROR)
