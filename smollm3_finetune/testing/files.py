"""Checks the files of a saved adapter or checkpoint: safetensors and text only, so that reading them runs no code."""

from __future__ import annotations

import json
from pathlib import Path

from smollm3_finetune.testing.conformance import demand, fail, outcome

TEXT = (".json", ".jsonl", ".jinja", ".md", ".txt", ".yaml")


def check_saved_files(directory: Path) -> None:
    """Fail the test unless all files below `directory` are readable safetensors or text, and some contain tensors."""
    files = sorted(f for f in directory.rglob("*") if f.is_file())
    tensors = 0
    for file in files:
        name = file.relative_to(directory).as_posix()
        if file.suffix not in (".safetensors", *TEXT):
            what = "a pickle or a zip of one" if file.read_bytes()[:2] in (b"PK", *PICKLES) else "of an unknown type"
            fail(
                f"the saved file {name} is {what}, which may run code when it is read: write tensors as safetensors, "
                "the rest as JSON"
            )
        found, error = outcome(_tensors_in, file)
        why = f"{type(error).__name__}: {error}"
        demand(error is None, f"the saved file {name} cannot be read as {file.suffix}: {why}")
        tensors += found or 0
    demand(tensors > 0, f"no tensors are saved as safetensors; the files are {[f.name for f in files]}")


def _tensors_in(file: Path) -> int:
    """The number of tensors in a file. Raises the exception of the reader if the content does not match the suffix."""
    from safetensors import safe_open

    if file.suffix == ".safetensors":
        with safe_open(str(file), framework="pt") as stored:
            return len(list(stored.keys()))
    text = file.read_text(encoding="utf-8")
    if file.suffix == ".json":
        json.loads(text)
    return 0


PICKLES = tuple(bytes((0x80, version)) for version in range(2, 6))
"""The first two bytes of a pickle, for each protocol."""
