"""Free space: compared with what will be written before the first byte is written."""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
from pathlib import Path

from smollm3_finetune.errors import WriteError

STATES = 3
"""The trained weights, and the two moments that AdamW keeps for each."""


def check_room(directory: Path, needed: float, what: str, *, left: str = "", hint: str | None = None) -> None:
    """Raises WriteError if the disk of `directory`, which need not exist, has less than `needed` bytes free.

    `what` is the subject of the sentence: `the checkpoint`. `left` says what remains usable, as a clause.
    """
    existing = next(p for p in (directory, *directory.absolute().parents) if p.exists())
    free = shutil.disk_usage(existing).free
    if needed <= free:
        return
    remains = f"; {left}" if left else ""
    raise WriteError(
        f"{what} needs {shown_size(needed)}, but {existing} has {shown_size(free)} free{remains}",
        hint=hint or f"free some space (df -h {shlex.quote(str(existing))}), or use another disk",
    )


def checkpoint_bytes(previous: Path | None, trained: int) -> int:
    """The expected size of a checkpoint: that of the previous one, else an estimate from the trained parameters.

    The estimate is that of AdamW in float32, without the tokenizer.
    """
    if previous is not None and (size := size_of(previous)):
        return size
    return trained * 4 * STATES


def size_of(directory: Path) -> int:
    """Bytes of the files below a directory; links are not followed."""
    total = 0
    for folder, _, files in os.walk(directory, followlinks=False):
        for name in files:
            with contextlib.suppress(OSError):
                total += os.lstat(os.path.join(folder, name)).st_size
    return total


def shown_size(size: float) -> str:
    """`1.4 GB`"""
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" or size >= 100 else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"
