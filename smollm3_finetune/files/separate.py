"""Work on a hostile file in a Python process of its own, with limits of time and memory: it can be ended, or crash."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

RUNNER = Path(__file__).with_name("run_separately.py")
PATIENCE = 20
"""The limit of time is of the processor's time, and this times as much on the clock: the computer may be busy."""


class Ended(Exception):
    """The process was ended or crashed. The message completes "reading it …"."""


class TooLong(Ended):
    """It exceeded the limit of time."""


class TooMuchMemory(Ended):
    """It exceeded the limit of memory."""


def in_separate_process(script: Path, job: Any, *, seconds: int | None = None, memory: int | None = None) -> Any:
    """The value of `answer(job)`, a function of the Python file `script`; both values are JSON-like.

    The script imports nothing of this project, which need not be importable there. `seconds` limit the processor's
    time of the call, `memory` the bytes that it allocates (on Linux). Raises Ended if there is no answer.
    """
    command = [sys.executable, "-P", str(RUNNER), str(script)]
    limits: Mapping[str, Any] = {"job": job, "seconds": seconds, "memory": memory}
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, encoding="utf-8"
    ) as child:
        try:
            out, _ = child.communicate(json.dumps(limits), timeout=None if seconds is None else PATIENCE * seconds)
        except subprocess.TimeoutExpired as e:
            raise TooLong(f"takes more than {seconds} seconds") from e
        finally:
            child.kill()
    if child.returncode == -getattr(signal, "SIGXCPU", 0) != 0:
        raise TooLong(f"takes more than {seconds} seconds")
    try:
        found = json.loads(out)
    except ValueError as e:
        raise Ended(f"ended Python with {_ending(child.returncode)}") from e
    if "answer" not in found:
        raise TooMuchMemory("needs too much memory")
    return found["answer"]


def _ending(code: int) -> str:
    try:
        return f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
    except ValueError:
        return f"signal {-code}"
