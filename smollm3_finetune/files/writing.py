"""Files and directories that appear whole or not at all, and are on disk when the call returns."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from smollm3_finetune.files.partial import partial_name, unfinished
from smollm3_finetune.files.permissions import apply_umask


def write_text(path: Path, text: str) -> None:
    """Write or replace a file: a reader, or a computer that crashes, finds the old content or the new one."""
    with unfinished(path) as partial:
        with partial.open("w", encoding="utf-8") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        partial.replace(path)
    sync_entry(path.parent)


def append_text(path: Path, text: str) -> None:
    """Append to a file, or leave it as it was: a failed or interrupted write leaves no part of the text."""
    with path.open("ab", buffering=0) as stream:
        before, data = stream.seek(0, os.SEEK_END), text.encode("utf-8")
        try:
            while data:
                data = data[stream.write(data) :]
        except BaseException:  # also Ctrl-C
            with contextlib.suppress(OSError):
                stream.truncate(before)
            raise


@contextlib.contextmanager
def whole_directory(path: Path) -> Iterator[Path]:
    """An empty directory to fill; at the end it is synced and renamed to `path`, whose former content is deleted.

    If the body raises, it is deleted. A leftover of a killed process is deleted first.
    """
    with unfinished(path) as partial:
        partial.mkdir(parents=True)
        yield partial
        publish_directory(partial, path)


def publish_directory(partial: Path, path: Path) -> None:
    """Sync a finished directory and rename it to `path`; a former directory there is deleted after that."""
    sync_tree(partial)
    former = partial_name(path)
    if path.exists():
        path.rename(former)
    partial.rename(path)
    sync_entry(path.parent)
    shutil.rmtree(former, ignore_errors=True)


def publish_files(partial: Path, directory: Path, *, last: str) -> None:
    """Sync a finished directory and move its files into `directory`, the file `last` at the end.

    Files of `directory` with other names stay. A directory that does not exist yet appears whole.
    """
    sync_tree(partial)
    if not directory.exists():
        partial.rename(directory)
        sync_entry(directory.parent)
        return
    files = sorted(
        (p.relative_to(partial) for p in partial.rglob("*") if p.is_file()), key=lambda p: (str(p) == last, p)
    )
    for name in files:
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        if str(name) == last:
            sync_entry(directory)
        (partial / name).replace(directory / name)
    sync_entry(directory)


def sync_tree(directory: Path) -> None:
    """Force every file and directory below `directory`, and the directory itself, to disk.

    First they get the permissions that the user's umask gives to new files: what is published passes through here.
    """
    apply_umask(directory)
    for folder, _, files in os.walk(directory):
        for name in files:
            with open(os.path.join(folder, name), "rb") as stream:
                os.fsync(stream.fileno())
        sync_entry(Path(folder))


def sync_entry(directory: Path) -> None:
    """Force the names in a directory to disk, where the system can do so; Windows cannot open a directory."""
    with contextlib.suppress(PermissionError):
        handle = os.open(directory, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
