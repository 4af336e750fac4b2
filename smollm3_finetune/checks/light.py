"""A plugin's hooks and options imported where torch and its like cannot be: they must not need them.

`heavy_imports` starts a Python of its own, because this one may have imported them already; that Python runs this
module, which leaves every other plugin out.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.abc
import io
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

HEAVY = frozenset((
    "torch", "transformers", "accelerate", "datasets", "tokenizers", "huggingface_hub", "numpy", "scipy", "pandas",
    "pyarrow", "sklearn", "triton", "tensorflow", "jax",
))  # fmt: skip
SECONDS = 60
SLOW = 1.0
"""Seconds that importing a plugin's hooks may take."""


@dataclass(frozen=True, kw_only=True)
class Light:
    """How a plugin's hooks and options were imported."""

    heavy: tuple[tuple[str, str], ...]
    """Each heavy module that was asked for, and the file and line that asked."""
    seconds: float
    printed: str
    """What the import wrote to standard output."""
    failed: str | None
    """Why that Python ended early."""


class _Poison(importlib.abc.MetaPathFinder):
    """Refuses heavy modules, and keeps who asked for them."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str]] = []

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> None:
        if fullname.partition(".")[0] not in HEAVY:
            return
        frame = sys._getframe(1)
        while frame.f_back is not None and "importlib" in frame.f_code.co_filename:
            frame = frame.f_back
        self.asked.append((fullname.partition(".")[0], f"{frame.f_code.co_filename}:{frame.f_lineno}"))
        raise ModuleNotFoundError(f"{fullname} must not be imported by a plugin's hooks or options", name=fullname)


def heavy_imports(requested: Sequence[str], plugin: str) -> Light:
    """Import the hooks and options of `plugin` in a Python of its own; `requested` are values of `-p`.

    `-P` keeps the working directory out of its path: nothing there is imported by itself.
    """
    command = [sys.executable, "-P", "-m", "smollm3_finetune.checks.light", plugin, *requested]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False)
    except subprocess.TimeoutExpired:
        return Light(heavy=(), seconds=SECONDS, printed="", failed=f"it was not done after {SECONDS} s")
    try:
        found = json.loads(done.stdout.splitlines()[-1])
    except (ValueError, IndexError):
        last = next(iter(reversed(done.stderr.strip().splitlines())), "")
        return Light(heavy=(), seconds=0, printed="", failed=f"Python ended with {done.returncode}: {last}")
    return Light(
        heavy=tuple((m, where) for m, where in found["heavy"]),
        seconds=found["seconds"],
        printed=found["printed"],
        failed=None,
    )


def main(plugin: str, requested: Sequence[str]) -> None:
    """Discover, and import the options of what `plugin` offers; print what was asked for as JSON."""
    from smollm3_finetune.components.discovery import PluginSelection, discover

    poison = _Poison()
    sys.meta_path.insert(0, poison)
    printed, began = io.StringIO(), time.perf_counter()
    with contextlib.redirect_stdout(printed):
        with contextlib.suppress(Exception):  # what is broken is told by discovery in the other Python
            for component in discover(PluginSelection.of(tuple(requested))).components:
                if component.plugin == plugin:
                    with contextlib.suppress(Exception):
                        importlib.import_module(component.spec.options.partition(":")[0])
        seconds = time.perf_counter() - began
    print(json.dumps({"heavy": poison.asked, "seconds": seconds, "printed": printed.getvalue()[:200]}))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
