"""Writes a file with each library while each of its calls fails in each way; prints the outcomes as JSON.

Started by `test_failures.py`, with `shim.c` preloaded: `python attempts.py FOLDER`.
"""

from __future__ import annotations

import ctypes
import gc
import json
import shutil
import sqlite3
import sys
from pathlib import Path
from typing import Any

import numpy
import pyarrow
import tokenizers
import torch
from faults import KINDS
from safetensors.torch import save_file

from smollm3_finetune.errors import WriteError, is_resource_error
from smollm3_finetune.files.failures import writing


def python(out: str) -> None:
    with open(out, "w") as stream:
        stream.write("x" * 100)


def arrow(out: str) -> None:
    table = pyarrow.table({"a": list(range(50_000))})
    with pyarrow.OSFile(out, "wb") as sink, pyarrow.ipc.new_file(sink, table.schema) as writer:
        writer.write(table)


def sqlite(out: str) -> None:
    connection = sqlite3.connect(out, isolation_level=None)
    try:
        connection.execute("create table t (a)")
    finally:
        connection.close()


WRITERS: dict[str, Any] = {
    "python": python,
    "torch": lambda out: torch.save({"a": torch.zeros(50_000)}, out),
    "safetensors": lambda out: save_file({"a": torch.zeros(50_000)}, out),
    "arrow": arrow,
    "copyfile": lambda out: shutil.copyfile(__file__, out),
    "numpy": lambda out: numpy.save(out, numpy.zeros(10_000)),
    "sqlite": sqlite,
    "tokenizers": lambda out: tokenizers.Tokenizer(tokenizers.models.BPE()).save(out),
}


def attempt(name: str, folder: Path, call: int, kind: str) -> dict[str, Any]:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    out = folder / f"{name}.npy"
    counter.restart(call, kind)
    try:
        with writing(out, left="the one before it is complete", again="smollm3 train"):
            WRITERS[name](str(out))
        return {"message": None, "calls": counter.calls()}
    except WriteError as e:
        return {"message": e.message, "hint": e.hint, "known": is_resource_error(e.__cause__ or e)}
    except BaseException as e:
        return {"message": f"not recognized: {type(e).__name__}: {e}", "hint": None, "known": False}
    finally:
        counter.restart(0, "")
        gc.collect()


class Counter:
    """The counter of the preloaded library."""

    def __init__(self, file: Path) -> None:
        self.file, self.arm = file, ctypes.CDLL(None).fault_arm
        self.arm.argtypes = [ctypes.c_uint64, ctypes.c_char_p, ctypes.c_int]

    def restart(self, call: int, kind: str) -> None:
        self.arm(call, kind.encode(), 0)

    def calls(self) -> int:
        return int.from_bytes(self.file.read_bytes(), sys.byteorder)


if __name__ == "__main__":
    folder, file = map(Path, sys.argv[1:])
    counter = Counter(file)
    gc.freeze()  # collect only what the attempts leave
    found = {}
    for name in WRITERS:
        calls = attempt(name, folder, 0, "")["calls"]
        for call in sorted({*range(1, min(calls, 6) + 1), calls}):
            for kind in KINDS:
                found[f"{name} {kind} {call}/{calls}"] = attempt(name, folder, call, kind)
    print(json.dumps(found))
