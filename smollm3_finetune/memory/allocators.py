"""How allocators round, and what they keep."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from smollm3_finetune.memory.build import Plan

CUDA_ROUND = 512
"""torch's caching allocator rounds to so many bytes (torch 2.13)."""
OBJECTS = 16_000_000
"""Bytes beside imports, weights and adapter before the first step: measured 11 to 22 MB with models of four layers."""
OF_TOKENIZER = 14
"""Measured with SmolLM2-135M: bytes in memory for each byte of tokenizer.json (3.5 MB: 48 MB)."""


def rounding(device: str) -> Callable[[int], int]:
    """The bytes that the allocator of a device takes for a tensor."""
    if device != "cuda":
        return lambda size: size
    return lambda size: -(-size // CUDA_ROUND) * CUDA_ROUND


def process_bytes(plan: Plan, device: str) -> int:
    """What a process on a CPU allocates beside tensors: the objects of a run, and its tokenizer."""
    if device != "cpu":
        return 0
    directory = getattr(plan.model.source, "directory", None)
    try:
        tokenizer = 0 if directory is None else (Path(directory) / "tokenizer.json").stat().st_size
    except OSError:
        tokenizer = 0
    return OBJECTS + OF_TOKENIZER * tokenizer


def huge_pages() -> bool:
    """Whether torch allocates large tensors of a CPU in huge pages, as it does in the command `smollm3`."""
    return sys.platform == "linux" and os.environ.get("THP_MEM_ALLOC_ENABLE") == "1"
