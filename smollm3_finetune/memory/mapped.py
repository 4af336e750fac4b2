"""Weights that a run on a CPU reads from their file while it computes, so that they take no memory of its own."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from smollm3_finetune.errors import SmolLM3Error
from smollm3_finetune.model_files.headers import read_headers, weight_files

if TYPE_CHECKING:
    from smollm3_finetune.memory.build import Held, Plan

NAMES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}


def mapped_bytes(plan: Plan, held: Held) -> int:
    """The bytes of frozen weights that stay mapped: those whose dtype in the file is that of the run.

    A weight of another dtype is converted, and one that is trained is copied when the first step changes it.
    """
    return held.frozen.get(stored_dtype(plan.model.source), 0)


def stored_dtype(source: Any) -> str:
    """The dtype of most weights of a source, by its files, or else by its config."""
    directory: Path | None = getattr(source, "directory", None)
    if directory is not None:
        try:
            headers = read_headers(weight_files(directory)).values()
        except SmolLM3Error:
            headers = ()  # type: ignore[assignment]
        counts: dict[str, int] = {}
        for header in headers:
            counts[header.dtype] = counts.get(header.dtype, 0) + 1
        if counts:
            return NAMES.get(max(counts, key=counts.__getitem__), "")
    stated = source.config.get("dtype") or source.config.get("torch_dtype") or "float32"
    return str(stated)
