"""Talks to llama.cpp in another process: see `llama_worker.py`."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from smollm3_finetune.api import MissingRequirementError

PACKAGE = "llama-cpp-python"
OLDEST = "0.3.36"
"""The oldest version that the calls were tested with."""
INSTALL = f"pip install '{PACKAGE}>={OLDEST}'"


class LlamaUnusableError(Exception):
    """llama.cpp cannot be used here, whatever the file; the text says why, `remedy` is a line to type if one helps."""

    def __init__(self, reason: str, remedy: str | None = None) -> None:
        super().__init__(reason)
        self.remedy = remedy

    @property
    def with_remedy(self) -> str:
        return str(self) if self.remedy is None else f"{self}: {self.remedy}"


class LlamaRefusedError(Exception):
    """llama.cpp refused the file, or ended; the text completes "llama.cpp refuses the file: …"."""


MEMORY = (
    "to allocate",
    "cannot allocate",
    "bad_alloc",
    "out of memory",
    "insufficient memory",
    "not enough memory",
    "no space left",
)
"""Parts of messages that say that this machine is too small, in lower case."""


def _error(reason: str) -> Exception:
    """The error for a message of llama.cpp that ended or refused."""
    if any(part in reason.lower() for part in MEMORY):
        return LlamaUnusableError(f"llama.cpp lacks memory or disk space: {reason}")
    return LlamaRefusedError(reason)


def too_old(found: str) -> str | None:
    """What is wrong with a version of llama-cpp-python; None if it is new enough."""
    from packaging.version import InvalidVersion, Version

    try:
        if Version(found) >= Version(OLDEST):
            return None
    except InvalidVersion:
        return f"{PACKAGE} has the unknown version {found!r}, and {OLDEST} or later is needed"
    return f"{PACKAGE} {found} is too old, and {OLDEST} or later is needed"


class Llama:
    """A running llama.cpp.

    Each method raises LlamaRefusedError if llama.cpp refuses the file or aborts, and LlamaUnusableError for what is no
    fault of the file: memory, or an error of llama-cpp-python itself.
    """

    def __init__(self, process: subprocess.Popen[bytes], said: Any) -> None:
        self._process, self._said = process, said
        first, _ = self._read()
        if "unusable" in first:
            raise LlamaUnusableError(f"{PACKAGE} is installed but cannot be imported: {first['unusable']}", INSTALL)
        self.version: str = first["version"]
        if (reason := too_old(self.version)) is not None:
            raise LlamaUnusableError(reason, INSTALL)
        self.size = 0

    def _read(self) -> tuple[dict[str, Any], bytes]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line.endswith(b"\n"):
            raise self._ended()
        header = json.loads(line)
        payload = self._process.stdout.read(header["bytes"])
        if len(payload) < header["bytes"]:
            raise self._ended()
        return header, payload

    def _ended(self) -> Exception:
        """The error for a process that ended instead of answering."""
        code = self._process.wait()
        self._said.seek(0)
        lines = [line.strip() for line in self._said.read().decode("utf-8", "replace").splitlines() if line.strip()]
        said = next(
            (line for line in lines if "GGML_ASSERT" in line or "GGML_ABORT" in line), lines[-1] if lines else ""
        )
        if code == -signal.SIGKILL:  # not llama.cpp's own decision
            return LlamaUnusableError("the process of llama.cpp was killed, perhaps because memory ran out")
        if code == -signal.SIGILL:
            return LlamaUnusableError("llama.cpp was compiled for another processor", f"{INSTALL} --force-reinstall")
        if code >= 0:  # llama.cpp ends by a signal
            return LlamaUnusableError(f"the process of llama.cpp ended with exit status {code}: {said}")
        return _error(f"it ended with {signal.Signals(-code).name}" + (f": {said}" if said else ""))

    def _ask(self, do: str, **arguments: Any) -> tuple[dict[str, Any], bytes]:
        assert self._process.stdin is not None
        request = json.dumps({"do": do, **arguments}).encode() + b"\n"
        try:
            self._process.stdin.write(request)
            self._process.stdin.flush()
        except BrokenPipeError:
            raise self._ended() from None
        header, payload = self._read()
        if "refused" in header:
            raise _error(header["refused"])
        if "failed" in header:
            raise LlamaUnusableError(f"{PACKAGE} {self.version} failed: {header['failed']}")
        return header, payload

    def open(self, file: Path, length: int, adapter: Path | None = None) -> None:
        """Load a model for rows of at most `length` tokens, and the GGUF of an adapter for it."""
        more = {} if adapter is None else {"adapter": str(adapter)}
        self.size = self._ask("open", file=str(file), length=length, threads=threads(), **more)[0]["size"]

    def logits(self, ids: Sequence[int], wanted: Sequence[int] | None = None) -> NDArray[np.float32]:
        """float32 logits (indices, tokens) of one row, at the ascending indices `wanted`; None: at all."""
        indices = list(range(len(ids)) if wanted is None else wanted)
        header, payload = self._ask("logits", ids=list(ids), wanted=indices)
        return np.frombuffer(payload, np.float32).reshape(header["shape"])

    def greedy(self, ids: Sequence[int], count: int, stops: Sequence[int]) -> list[int]:
        """The greedy answer of at most `count` tokens; ends after a token of `stops`."""
        answer: list[int] = self._ask("greedy", ids=list(ids), count=count, stops=list(stops))[0]["ids"]
        return answer

    def tokenize(self, texts: Sequence[str], special: bool = False) -> list[list[int]]:
        """Token ids of texts, with control tokens parsed; `special`: with the tokens that the file says to add."""
        ids: list[list[int]] = self._ask("tokenize", texts=list(texts), special=special)[0]["ids"]
        return ids

    def tokens(self) -> tuple[list[str], list[int]]:
        """The text of every token, and the ids at which llama.cpp ends an answer."""
        header, _ = self._ask("tokens")
        return header["texts"], header["ends"]

    def quantize(self, source: Path, out: Path, type: int) -> None:
        self._ask("quantize", source=str(source), out=str(out), type=type, threads=threads())


def installed() -> bool:
    """Whether llama-cpp-python can be found; it is not imported in this process."""
    return importlib.util.find_spec("llama_cpp") is not None


def check_installed(type: str) -> None:
    """Raise MissingRequirementError without llama-cpp-python, which a type needs, or with an older one."""
    if not installed():
        raise MissingRequirementError(
            f"type {type} is quantized by llama.cpp, and {PACKAGE} is not installed", hint=INSTALL
        )
    with contextlib.suppress(PackageNotFoundError):
        if (reason := too_old(version(PACKAGE))) is not None:
            raise MissingRequirementError(f"type {type} is quantized by llama.cpp: {reason}", hint=INSTALL)


def threads() -> int:
    """As many threads as torch uses."""
    import torch

    count: int = torch.get_num_threads()
    return count


@contextlib.contextmanager
def llama() -> Iterator[Llama]:
    """Inside the context, llama.cpp runs in a process of its own. Raises LlamaUnusableError if it cannot be used."""
    if not installed():
        raise LlamaUnusableError(f"{PACKAGE} is not installed", INSTALL)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "GGML_NO_BACKTRACE": "1"}
    command = [sys.executable, "-P", "-m", "smollm3_gguf.llama_worker"]
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=said, env=environment)
        try:
            yield Llama(process, said)
        finally:
            process.kill()
            process.communicate()
