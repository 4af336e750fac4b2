"""Small pieces of Python, such as imports, run in a process of their own: a crash or a hang there is a finding."""

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
"""For one piece: importing torch on a busy machine with a cold disk takes a minute."""
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
    """How one piece went."""

    problem: str | None = None
    answer: Any = None
    """What it left in the name `answer`."""
    ended: bool = False
    """Whether it took Python down, or would not end."""


def run_pieces(pieces: Mapping[str, str], seconds: float = SECONDS) -> dict[str, Probe]:
    """Run each piece, all in one process as long as it lives; one that ends or hangs it is named and passed over."""
    rest, found = dict(pieces), dict[str, Probe]()
    while rest:
        found |= _run(rest, seconds)
        rest = {n: c for n, c in rest.items() if n not in found}
    return {name: found[name] for name in pieces}


def _run(pieces: Mapping[str, str], seconds: float) -> dict[str, Probe]:
    """As far as one process gets: at least the first piece has a finding. `-P`: no module of the working directory."""
    child = subprocess.Popen(
        [sys.executable, "-P", "-c", CHILD], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True, errors="replace",
    )  # fmt: skip
    assert child.stdin is not None and child.stdout is not None and child.stderr is not None
    lines: queue.Queue[str | None] = queue.Queue()
    said: list[str] = []
    readers = (
        threading.Thread(target=_forward, args=(child.stdout, lines), daemon=True),
        threading.Thread(target=lambda: said.extend(child.stderr or ()), daemon=True),
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
            found[current] = Probe(problem=f"it was not done after {seconds:g} s", ended=True)
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
    return _with_old_numpy(found, "".join(said))


def _forward(stream: IO[str], lines: queue.Queue[str | None]) -> None:
    """Every line of a stream, then None."""
    for line in stream:
        lines.put(line)
    lines.put(None)


def _ending(code: int) -> str:
    import signal

    try:
        return f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
    except ValueError:
        return f"signal {-code}"


def _with_old_numpy(found: Mapping[str, Probe], said: str) -> dict[str, Probe]:
    """The findings, with what numpy merely prints when a package was built for numpy 1 and cannot use this one."""
    parts = said.split("\0")  # text, name, text, name, text, …
    by_name = dict(zip(parts[1::2], parts[2::2], strict=False))
    return {
        name: Probe(problem="it was built for numpy 1, and numpy 2 is installed", answer=probe.answer)
        if probe.problem is None and OLD_NUMPY.search(by_name.get(name, ""))
        else probe
        for name, probe in found.items()
    }
