"""Starts the program that starts the processes of a run, passes on their output, and ends all of them together."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from smollm3_finetune.errors import SmolLM3Error

if TYPE_CHECKING:
    import subprocess

    from smollm3_finetune.api.launching import Launch
    from smollm3_finetune.api.models import Progress

ATTACHED = "SMOLLM3_ATTACHED"
"""Set in each process that `run_processes` starts. Such a process of a run writes its output to standard output, which
leaves standard error to the program that started it; it stops, and saves its state, when its standard input ends."""
LINES = 400
"""The lines of standard error that are kept."""
GRACE = 60.0
"""Seconds in which processes must end after the program that started them has ended."""
WITHOUT_WORKERS = 5.0
"""Seconds after a request to stop until a program that has started no process yet is terminated."""


def run_processes(
    argv: Sequence[str],
    launch: Launch,
    progress: Progress,
    *,
    environment: Mapping[str, str] | None = None,
    explain: Callable[[str], str | None] | None = None,
) -> None:
    """Run a program that starts the processes of a run, such as torchrun, and wait until all of them ended.

    Their output is shown; what the program itself prints on standard error is kept for `explain`, which may find in it
    why a process failed, as a clause: `process 1 was killed by SIGKILL`. By default, torch's report of a failed process
    is looked for. A request to stop makes the processes save their state and end. Raises SmolLM3Error if the program
    fails; then no process is left.
    """
    import subprocess  # imported late, as other modules that only a launch needs

    mark = os.urandom(8).hex()
    variables = {**os.environ, **launch.environment, **(environment or {}), ATTACHED: mark}
    shared = sys.stderr is not None and sys.stderr.isatty()
    try:
        program = subprocess.Popen(
            list(argv), stdin=subprocess.PIPE, stdout=_terminal() if shared else subprocess.PIPE,
            stderr=subprocess.PIPE, env=variables, start_new_session=True,
        )  # fmt: skip
    except OSError as e:
        raise SmolLM3Error(f"{argv[0]} cannot be started: {e.strerror or e}") from e
    assert program.stdin is not None and program.stderr is not None
    kept = deque[str](maxlen=LINES)
    readers = [_reading(program.stderr, kept.append)]
    if program.stdout is not None:
        readers.append(_reading(program.stdout, lambda line: progress.say(line) if line.strip() else None))
    try:
        program.wait()
    except BaseException:  # a request to stop
        _close(program.stdin)
        _wait_for_stop(program, mark)
        raise
    finally:
        _close(program.stdin)
        _end_rest(program, mark)
        for reader in readers:
            reader.join(timeout=GRACE)
    if program.returncode != 0:
        raise SmolLM3Error(_failure(argv, program.returncode, list(kept), explain or explain_torch))


def _terminal() -> int:
    return sys.stderr.fileno()


def _reading(stream: IO[bytes], take: Callable[[str], object]) -> threading.Thread:
    """A thread that passes the lines of a stream on until it ends."""

    def read() -> None:
        with stream:
            for line in stream:
                take(line.decode("utf-8", errors="replace").rstrip("\n").rpartition("\r")[2])

    thread = threading.Thread(target=read, daemon=True)
    thread.start()
    return thread


def _close(stream: IO[bytes]) -> None:
    with contextlib.suppress(OSError):
        stream.close()


def _wait_for_stop(program: subprocess.Popen[bytes], mark: str) -> None:
    """Wait until the processes have saved their state. A further request to stop terminates the program."""
    import subprocess

    asked = time.monotonic()
    try:
        while True:
            try:
                program.wait(timeout=1.0)
                return
            except subprocess.TimeoutExpired:
                if time.monotonic() - asked > WITHOUT_WORKERS and not list(_marked(mark, program.pid)):
                    program.terminate()
                    asked = time.monotonic()
    except KeyboardInterrupt:
        program.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            program.wait(timeout=GRACE)
        raise


def _end_rest(program: subprocess.Popen[bytes], mark: str) -> None:
    """Wait for the processes that the program has left behind, which are stopping, and kill those that remain."""
    if program.poll() is None:
        program.kill()
        program.wait()
    deadline = time.monotonic() + GRACE
    while left := list(_marked(mark, program.pid)):
        if time.monotonic() > deadline:
            for process in left:
                with contextlib.suppress(Exception):
                    process.kill()
            deadline = time.monotonic() + GRACE
        time.sleep(0.2)


def _marked(mark: str, but: int) -> Iterator[Any]:
    """The processes with this mark in their environment."""
    import psutil

    for process in psutil.process_iter():
        if process.pid == but:
            continue
        with contextlib.suppress(psutil.Error, OSError):
            if process.environ().get(ATTACHED) == mark and process.status() != psutil.STATUS_ZOMBIE:
                yield process


def _failure(argv: Sequence[str], code: int, lines: Sequence[str], explain: Callable[[str], str | None]) -> str:
    """Why the program failed, as a sentence."""
    if (found := explain("\n".join(lines))) is not None:
        return found
    name = Path(argv[0]).name if argv[1:2] != ["-m"] else argv[2]
    last = next((line.strip() for line in reversed(lines) if line.strip()), "")
    ended = f"was killed by {_signal(-code)}" if code < 0 else f"ended with exit code {code}"
    return f"{name} {ended}{f': {last}' if last else ''}"


FIRST = re.compile(r"Root Cause.*?rank\s*: (?P<rank>\d+)[^\n]*\n[^\n]*exitcode\s*: (?P<code>-?\d+)", re.DOTALL)
PORT_TAKEN = re.compile(r"EADDRINUSE|address already in use", re.IGNORECASE)
NOT_MET = re.compile(r"Rendezvous(Timeout|Connection|Closed)Error|DistNetworkError|TCPStore.*timed out", re.IGNORECASE)


def explain_torch(text: str) -> str | None:
    """Which process failed first, in the report of torch's elastic agent (torchrun, `accelerate launch`)."""
    if (found := FIRST.search(text)) is not None:
        code = int(found["code"])
        if code < 0:
            return f"process {found['rank']} was killed by {_signal(-code)}"
        return f"process {found['rank']} ended with exit code {code}"
    if PORT_TAKEN.search(text):
        return "another program uses the port where the processes of the run meet"
    return "the machines of the run did not meet in time" if NOT_MET.search(text) else None


def _signal(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
