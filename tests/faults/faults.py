"""Runs programs whose writes below a directory fail, or that are killed at a write, with the library `shim.c`.

    counted = run(command, directory)                        # counts the calls that change the directory
    for call in range(1, counted.calls + 1):
        run(command, directory, call=call, kind="ENOSPC")    # fails from this call on, as on a full disk
        run(command, directory, call=call, kind="KILL")      # dies at this call, as with kill -9

Restore the directory between two runs. It needs gcc on Linux: mark tests with `needs_shim`.
"""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

SOURCE = Path(__file__).with_name("shim.c")
COMMAND = (sys.executable, "-m", "smollm3_finetune.main")
KINDS = ("ENOSPC", "ENOINODES", "EDQUOT", "EIO", "EROFS", "EFBIG")
"""The ways in which a write fails; `KILL` ends the process."""
_KEPT: list[tempfile.TemporaryDirectory[str]] = []

needs_shim = pytest.mark.skipif(
    sys.platform != "linux" or shutil.which("gcc") is None, reason="needs gcc and LD_PRELOAD of Linux"
)


@dataclass(frozen=True)
class Ran:
    """How a program ended."""

    code: int
    """The exit code; -9 if it was killed."""
    stdout: str
    stderr: str
    calls: int
    """The number of counted calls."""
    log: tuple[str, ...]
    """The counted calls: `NUMBER CALL PATH`."""


@functools.cache
def shim() -> Path:
    """The compiled library, built once per process."""
    _KEPT.append(tempfile.TemporaryDirectory(prefix="smollm3-shim-"))
    library = Path(_KEPT[-1].name) / "shim.so"
    subprocess.run(["gcc", "-O1", "-shared", "-fPIC", "-o", str(library), str(SOURCE), "-ldl"], check=True)
    return library


def environment(
    directory: Path, scratch: Path, *, call: int = 0, kind: str = "ENOSPC", once: bool = False
) -> dict[str, str]:
    """The variables for a program whose calls below `directory` are counted, and fail from number `call` on."""
    (scratch / "counter").write_bytes(bytes(8))
    return {
        "LD_PRELOAD": str(shim()),
        "FAULT_DIR": str(directory.resolve()),
        "FAULT_COUNTER": str(scratch / "counter"),
        "FAULT_LOG": str(scratch / "log"),
        "FAULT_CALL": str(call),
        "FAULT_KIND": kind,
        "FAULT_ONCE": str(int(once)),
    }


def run(
    command: Sequence[Any], directory: Path, *, call: int = 0, kind: str = "ENOSPC", once: bool = False,
    timeout: float = 300, **env: str,
) -> Ran:  # fmt: skip
    """Run a command with faults below `directory`; without `call`, its calls are only counted."""
    with tempfile.TemporaryDirectory(prefix="smollm3-faults-") as name:
        scratch = Path(name)
        faults = environment(directory, scratch, call=call, kind=kind, once=once)
        done = subprocess.run(
            [str(part) for part in command], env={**os.environ, **faults, **env}, capture_output=True, text=True,
            errors="replace", timeout=timeout, check=False,
        )  # fmt: skip
        log = scratch / "log"
        lines = tuple(log.read_text(errors="replace").splitlines()) if log.exists() else ()
        calls = int.from_bytes((scratch / "counter").read_bytes(), sys.byteorder)
    return Ran(done.returncode, done.stdout, done.stderr, calls, lines)


def smollm3(*arguments: Any, directory: Path, **how: Any) -> Ran:
    """`smollm3 ARGUMENTS` with faults below `directory`; `how` are the keywords of `run`."""
    return run([*COMMAND, *arguments], directory, **how)
