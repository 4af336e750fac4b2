"""Files and directories that appear whole or not at all, and are on disk when the call returns."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from smollm3_finetune.files.permissions import apply_umask

PARTIAL = ".partial-"
"""Prefix of the name of what is being written; a leftover of a killed process has it too."""


def partial_name(path: Path) -> Path:
    """The path beside `path` at which it is written before it is renamed."""
    return path.with_name(f"{PARTIAL}{path.name}")


def delete_unfinished(directory: Path) -> None:
    """Delete what a killed process was writing in a directory, which only this process may write to."""
    for leftover in directory.glob(f"{PARTIAL}*"):
        if leftover.is_dir() and not leftover.is_symlink():
            shutil.rmtree(leftover, ignore_errors=True)
        else:
            with contextlib.suppress(OSError):
                leftover.unlink()


def write_text(path: Path, text: str) -> None:
    """Write or replace a file: a reader, or a computer that crashes, finds the old content or the new one."""
    partial = partial_name(path)
    try:
        with partial.open("w", encoding="utf-8") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        partial.replace(path)
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
    sync_entry(path.parent)


def append_text(path: Path, text: str) -> None:
    """Append to a file, or leave it as it was: a failed write leaves no part of the text."""
    with path.open("ab", buffering=0) as stream:
        before, data = stream.seek(0, os.SEEK_END), text.encode("utf-8")
        try:
            while data:
                data = data[stream.write(data) :]
        except OSError:
            with contextlib.suppress(OSError):
                stream.truncate(before)
            raise


@contextlib.contextmanager
def whole_directory(path: Path) -> Iterator[Path]:
    """An empty directory to fill; at the end it is synced and renamed to `path`, whose former content is deleted.

    If the body raises, it is deleted. A leftover of a killed process at the same path is deleted first.
    """
    partial = partial_name(path)
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
        publish_directory(partial, path)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def publish_directory(partial: Path, path: Path) -> None:
    """Sync a finished directory and rename it to `path`; a former directory there is deleted after that."""
    sync_tree(partial)
    former = path.with_name(f"{PARTIAL}former-{path.name}")
    shutil.rmtree(former, ignore_errors=True)
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
