"""Failed writes: recognized in the form in which each library reports them, and reported in one sentence."""

from __future__ import annotations

import contextlib
import errno
import os
import shlex
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from smollm3_finetune.errors import (
    EDQUOT,
    PluginError,
    SmolLM3Error,
    WriteError,
    error_number,
    first_line,
    is_failed_write,
    is_out_of_memory,
)

GONE = (errno.ENOENT, errno.ENOTDIR, getattr(errno, "ESTALE", errno.ENOENT))
REFUSED = (errno.EACCES, errno.EPERM)
NOT_WRITES = (errno.ENOMEM, errno.EINTR, errno.EPIPE)
"""Error numbers that are reported otherwise even inside `writing`."""
CANNOT_OPEN = 14
"""SQLite's result code for a database that it can neither open nor create."""
PROBE_BYTES = 1 << 16
OUT_OF_MEMORY_HINT = (
    "use a quantizer (--quant NAME) or --device cpu; for training, a smaller --batch-size or "
    "--max-length, or --set train.gradient_checkpointing=true"
)


@contextlib.contextmanager
def writing(
    path: Path | str, *, left: str | Callable[[], str] = "", again: str | Callable[[], str] = "", elsewhere: str = ""
) -> Iterator[None]:
    """Convert a failed write inside the context, of whatever library, into a WriteError that names `path`.

    `path` is the file or directory as the user knows it. `left` says what remains usable, as a clause such as
    `checkpoint-20 is complete`, and `again` is the command that repeats or continues the work; both may be functions
    that return it. `elsewhere` is what chooses another disk, such as `--output DIR`. Contexts may be nested: the
    innermost names the file. Enter it inside `whole_directory`, which deletes the evidence at its end.
    """
    try:
        yield
    except Exception as e:
        found = write_error(e, Path(path), left=left, again=again, elsewhere=elsewhere)
        if found is None:
            raise
        raise found from e


def write_error(
    error: BaseException,
    path: Path | None,
    *,
    left: str | Callable[[], str] = "",
    again: str | Callable[[], str] = "",
    elsewhere: str = "",
) -> WriteError | None:
    """The WriteError for an exception that is, or was caused by, a failed write; None for any other.

    Without a `path`, only exceptions count that cannot come from reading.
    """
    if isinstance(error, SmolLM3Error) and not isinstance(error, PluginError):
        return None
    cause = _failed_write(error, path)
    if cause is None:
        return None
    named = getattr(cause, "filename2", None) or getattr(cause, "filename", None)
    if path is None or (isinstance(named, str) and not _concerns(Path(os.path.abspath(named)), path.absolute())):
        path, left = Path(named) if isinstance(named, str) else None, left if path is None else ""
    place = _directory(path) if path is not None else None
    number = error_number(cause)
    if number is None and place is not None:
        number = _probe(place)
    reason, fix = _explained(number, place, cause)
    if elsewhere and "another" in fix:
        fix = f"{fix}: {elsewhere}"
    name = _inside(cause, path)
    what = "the output or a file" if path is None else repr(str(path))
    remains, command = left() if callable(left) else left, again() if callable(again) else again
    return WriteError(
        f"{what} cannot be written: {reason}{f' (at {name})' if name else ''}{f'; {remains}' if remains else ''}",
        hint=f"{fix}, then: {command}" if command else fix,
    )


def resource_error(error: BaseException) -> SmolLM3Error | None:
    """The error for a failed write or for too little memory, in one sentence with a hint; None for any other."""
    if (failed := write_error(error, None)) is not None:
        return failed
    if is_out_of_memory(error):
        text = str(error).strip().partition("\n")[0] or "Python cannot allocate more"
        return SmolLM3Error(f"out of memory: {text}", hint=OUT_OF_MEMORY_HINT)
    return None


def _failed_write(error: BaseException, path: Path | None) -> BaseException | None:
    """The failed write in the chain of causes of an exception."""
    found: BaseException | None = error
    deliberate, seen = True, set()
    while found is not None and id(found) not in seen:
        seen.add(id(found))
        if is_failed_write(found) or (deliberate and path is not None and _is_write_below(found, path)):
            return found
        deliberate = found.__cause__ is not None  # an exception that was only being handled may be unrelated
        found = found.__cause__ or (None if found.__suppress_context__ else found.__context__)
    return None


def _is_write_below(error: BaseException, path: Path) -> bool:
    """Whether an exception that could also come from reading is about `path`."""
    if getattr(error, "sqlite_errorcode", None) == CANNOT_OPEN:
        return True
    number = error_number(error)
    if number is None or number in NOT_WRITES:
        return False
    names = [n for n in (getattr(error, "filename", None), getattr(error, "filename2", None)) if isinstance(n, str)]
    if not names and isinstance(error, OSError):
        return not isinstance(error, FileNotFoundError | ConnectionError | TimeoutError) or path.name in str(error)
    if not names:  # of a Rust library: its reading errors have numbers too
        return number == errno.EIO or "serializing" in str(error) or path.name in str(error)
    return any(_concerns(Path(os.path.abspath(name)), Path(os.path.abspath(path))) for name in names)


def _concerns(file: Path, path: Path) -> bool:
    """Whether `file` is `path`, below it, above it, or below a partial copy of it: a name that contains its name."""
    if path.is_relative_to(file):
        return True
    parent = path.parent
    return file.is_relative_to(parent) and path.name in file.relative_to(parent).parts[0]


def _explained(number: int | None, place: Path | None, error: BaseException) -> tuple[str, str]:
    """The reason in words, and what to do about it."""
    where = f" {shlex.quote(str(place))}" if place is not None else ""
    if number == errno.ENOSPC and place is not None and _no_inodes(place):
        return "the file system has no free inodes", f"delete some files (df -i{where})"
    if number == errno.ENOSPC:
        return "the disk is full", f"free some space (df -h{where}), or use another disk"
    if number == EDQUOT:
        return "your disk quota is used up", "delete some files (quota -s), or use another disk"
    if number == errno.EROFS:
        return "the file system is read-only", "use a directory on another file system"
    if number == errno.EFBIG:
        return "the file would exceed the largest size allowed", "raise the limit: ulimit -f unlimited"
    if number == errno.EIO:
        return "the disk reported an input/output error", "check the disk (dmesg), or use another one"
    if number in (*GONE, errno.EEXIST) and (lost := _lost(error, place)) is not None:
        if blocker := next((p for p in (lost, *lost.parents) if p.exists() and not p.is_dir()), None):
            return f"{blocker} is not a directory", "use another directory"
        return f"the directory {lost} does not exist", f"mkdir -p {shlex.quote(str(lost))}, or use another directory"
    if number in REFUSED:
        return "permission denied", f"chmod u+w{where}" if where else "use a directory that you can write"
    if number is not None:
        return os.strerror(number), "use another directory"
    return first_line(error), f"check the disk (df -h{where})"


def _inside(error: BaseException, path: Path | None) -> str | None:
    """The name of the file below the directory `path` at which a write failed."""
    name = getattr(error, "filename2", None) or getattr(error, "filename", None)
    if path is None or not isinstance(name, str):
        return None
    file = Path(os.path.abspath(name))
    return None if path.is_relative_to(file) or path.name in file.name or file.is_dir() else file.name


def _directory(path: Path) -> Path:
    """The directory that is written: `path` if it is one, otherwise the directory it belongs to."""
    return path if path.is_dir() else path.absolute().parent


def _lost(error: BaseException, place: Path | None) -> Path | None:
    """The directory that a failed write misses, if it can be determined."""
    name = getattr(error, "filename2", None) or getattr(error, "filename", None)
    candidates = [Path(name).parent] if isinstance(name, str) else []
    return next((p for p in (*candidates, *([place] if place is not None else [])) if not p.is_dir()), None)


def _no_inodes(place: Path) -> bool:
    with contextlib.suppress(OSError, AttributeError):  # Windows does not have statvfs
        about = os.statvfs(place)
        return about.f_files > 0 and about.f_favail == 0
    return False


def _probe(place: Path) -> int | None:
    """The error number of a small write into a directory, for an exception without one; None if it succeeds."""
    if not place.is_dir():
        return errno.ENOENT
    try:
        with tempfile.TemporaryFile(dir=place, buffering=0) as stream:
            stream.write(bytes(PROBE_BYTES))
            os.fsync(stream.fileno())
    except OSError as e:
        return e.errno
    with contextlib.suppress(ImportError, AttributeError):  # not on Linux
        import resource

        if resource.prlimit(0, resource.RLIMIT_FSIZE)[0] != resource.RLIM_INFINITY:
            return errno.EFBIG
    return None
