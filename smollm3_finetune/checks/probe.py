"""Runs small pieces of Python, such as imports, in a separate process, so that a crash or a hang is a finding."""

from __future__ import annotations

import json
import queue
import re
import subprocess
import sys
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import IO, Any

SECONDS = 180.0
"""The time limit for one piece: importing torch on a busy machine with a cold disk takes a minute."""
OLD_NUMPY = re.compile(r"compiled using NumPy 1\.x|_ARRAY_API not found|numpy\.dtype size changed")
CHILD = """
import json, os, sys
pieces = json.loads(sys.stdin.read())
out = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)
for name, code in pieces.items():
    print(json.dumps(["begin", name]), file=out, flush=True)
    print(f"\\0{name}\\0", file=sys.stderr, flush=True)
    value = {}
    try:
        exec(code, value)
        problem = None
    except BaseException as e:
        problem = f"{type(e).__name__}: {' '.join(str(e).split())}"[:500]
    print(json.dumps(["end", name, problem, value.get("answer")]), file=out, flush=True)
"""


@dataclass(frozen=True, kw_only=True)
class Probe:
    """The result of one piece."""

    problem: str | None = None
    answer: Any = None
    """The value that it assigned to `answer`."""
    ended: bool = False
    """Whether it ended Python, or exceeded the time limit."""


def run_pieces(pieces: Mapping[str, str], seconds: float = SECONDS) -> dict[str, Probe]:
    """Run all pieces in one process; after a piece that ends or hangs it, the rest runs in a new process."""
    rest, found = dict(pieces), dict[str, Probe]()
    while rest:
        found |= _run(rest, seconds)
        rest = {n: c for n, c in rest.items() if n not in found}
    return {name: found[name] for name in pieces}


def _run(pieces: Mapping[str, str], seconds: float) -> dict[str, Probe]:
    """The results of one process, at least that of the first piece. `-P` excludes modules of the working directory."""
    child = subprocess.Popen(
        [sys.executable, "-P", "-c", CHILD], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True, errors="replace",
    )  # fmt: skip
    assert child.stdin is not None and child.stdout is not None and child.stderr is not None
    lines: queue.Queue[str | None] = queue.Queue()
    errors: list[str] = []
    readers = (
        threading.Thread(target=_forward, args=(child.stdout, lines), daemon=True),
        threading.Thread(target=lambda: errors.extend(child.stderr or ()), daemon=True),
    )
    for reader in readers:
        reader.start()
    child.stdin.write(json.dumps(dict(pieces)))
    child.stdin.close()
    found: dict[str, Probe] = {}
    current = next(iter(pieces))
    while True:
        try:
            line = lines.get(timeout=seconds)
        except queue.Empty:
            child.kill()
            found[current] = Probe(problem=f"it did not finish within {seconds:g} s", ended=True)
            break
        if line is None:
            if len(found) < len(pieces):
                code = child.wait()
                found[current] = Probe(problem=f"Python ended with {_ending(code)}", ended=True)
            break
        word, current, *rest = json.loads(line)
        if word == "end":
            found[current] = Probe(problem=rest[0], answer=rest[1])
    child.wait()
    for reader, stream in zip(readers, (child.stdout, child.stderr), strict=True):
        reader.join(timeout=5)
        if not reader.is_alive():  # else a process that the child started still writes there
            stream.close()
    return _with_old_numpy(found, "".join(errors))


def _forward(stream: IO[str], lines: queue.Queue[str | None]) -> None:
    """Put every line of a stream into `lines`, then None."""
    for line in stream:
        lines.put(line)
    lines.put(None)


def _ending(code: int) -> str:
    import signal

    try:
        return f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
    except ValueError:
        return f"signal {-code}"


def _with_old_numpy(found: Mapping[str, Probe], errors: str) -> dict[str, Probe]:
    """The results, with a problem for each package built for numpy 1: numpy 2 only prints a message about it."""
    parts = errors.split("\0")  # text, name, text, name, text, …
    by_name = dict(zip(parts[1::2], parts[2::2], strict=False))
    return {
        name: Probe(problem="it was built for numpy 1, but numpy 2 is installed", answer=probe.answer)
        if probe.problem is None and OLD_NUMPY.search(by_name.get(name, ""))
        else probe
        for name, probe in found.items()
    }
