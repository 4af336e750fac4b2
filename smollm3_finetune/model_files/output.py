"""The directory of a written model (merged, quantized): it appears complete or not at all.

DIR                     the finished model
.DIR.smollm3-partial-*  a model being written, or a leftover of a killed process; deleted by the next write to DIR
.DIR.smollm3-lock       held while a model for DIR is written; only its holder may delete leftovers
"""

from __future__ import annotations

import contextlib
import errno
import os
import shlex
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path

from smollm3_finetune.errors import ConfigError
from smollm3_finetune.files.failures import writing
from smollm3_finetune.files.locks import locked
from smollm3_finetune.files.room import check_room
from smollm3_finetune.files.writing import sync_entry, sync_tree
from smollm3_finetune.paths import check_below_directories

SIZES = {"float64": 8, "float32": 4, "bfloat16": 2, "float16": 2}
"""Bytes of one value."""
SPARE = 1.05
"""Factor on the size of the weights, for the tokenizer and other files."""


def check_vacant(flag: str, directory: Path) -> None:
    """Raises ConfigError unless `directory` is empty or does not exist: files of a user are never overwritten."""
    if directory.is_symlink() or (directory.exists() and not directory.is_dir()):
        raise ConfigError(f"{flag} {directory} is not a directory", hint=f"{flag} DIRECTORY")
    check_below_directories(flag, directory)
    if directory.exists() and (directory.resolve() == Path.cwd() or os.path.ismount(directory)):
        what = "a mount point" if os.path.ismount(directory) else "the current directory"
        raise ConfigError(
            f"{flag} {directory} is {what}, but the output must be a new directory",
            hint=f"{flag} {shlex.quote(str(directory / 'model'))}",
        )
    if directory.is_dir() and any(directory.iterdir()):
        name = f"the output directory {str(directory)!r}" if flag == "--output" else f"{flag} {directory}"
        what = "already contains a model" if (directory / "config.json").exists() else "is not empty"
        raise ConfigError(f"{name} {what}", hint=f"choose another {flag}")


def check_space(directory: Path, parameters: int, dtype: str, copies: int = 1) -> None:
    """Raises WriteError if `copies` models of this size do not fit on the disk of `directory`."""
    hint = "choose an --output on another disk" + (", or --dtype bfloat16" if SIZES[dtype] > 2 else "")
    check_room(directory, SPARE * copies * parameters * SIZES[dtype], f"the model in {dtype}", hint=hint)


TAKEN = (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR)
"""Error numbers of a rename to a path that exists."""


@contextlib.contextmanager
def claimed(directory: Path) -> Iterator[None]:
    """Reserve `directory` for this process, and delete leftovers of killed processes.

    Raises ConfigError if another process holds it, and WriteError if its parent cannot be written.
    """
    with writing(directory, elsewhere="--output DIR"):
        directory.parent.mkdir(parents=True, exist_ok=True)
    busy = f"another process is writing to {directory}"
    with locked(_beside(directory, "lock"), busy, instead="choose another --output", remove=True):
        prefix = _beside(directory, "partial-").name
        for leftover in directory.parent.iterdir():
            if leftover.name[:-8] == prefix and leftover.is_dir() and not leftover.is_symlink():
                shutil.rmtree(leftover, ignore_errors=True)
        yield


@contextlib.contextmanager
def partial(directory: Path, left: str = "nothing was kept") -> Iterator[Path]:
    """An empty directory beside `directory`, to be written and passed to `publish`; deleted if not published.

    Raises WriteError, with what is `left` usable, if something cannot be written.
    """
    path = _beside(directory, f"partial-{uuid.uuid4().hex[:8]}")
    try:
        with writing(directory, left=left, elsewhere="--output DIR"):
            path.mkdir()
            yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def publish(path: Path, directory: Path) -> None:
    """Sync a finished directory to disk and rename it in one step.

    Raises ConfigError if `directory` is no longer empty.
    """
    sync_tree(path)
    try:
        path.rename(directory)  # unlike `publish_directory`, this never replaces files
    except OSError as e:
        if e.errno not in TAKEN:
            raise
        raise ConfigError(
            f"{directory} was empty at the start, but cannot be written now: {e.strerror}",
            hint="choose another --output",
        ) from e
    sync_entry(directory.absolute().parent)


def _beside(directory: Path, what: str) -> Path:
    """A name in the same directory, reserved for this project."""
    path = Path(os.path.abspath(directory))
    return path.with_name(f".{path.name}.smollm3-{what}")
