"""Imports a plugin's hooks and options with torch and other heavy packages blocked: they must not need them.

Then the functions that are called while a run is planned are called once on small input: `claims`, `refine` and
`check`, a loader's `open` and a formatter.

`heavy_imports` starts a separate Python process, because this one may have imported heavy packages already. That
process runs this module and imports no other plugin, which would be blamed on this one.
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
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from smollm3_finetune.components.locations import is_core

if TYPE_CHECKING:
    from smollm3_finetune.components.registry import RegisteredComponent

HEAVY = frozenset((
    "torch", "transformers", "accelerate", "datasets", "tokenizers", "huggingface_hub", "numpy", "scipy", "pandas",
    "pyarrow", "sklearn", "triton", "tensorflow", "jax",
))  # fmt: skip
SECONDS = 60
SLOW = 1.0
"""The number of seconds that importing a plugin's hooks may take."""


@dataclass(frozen=True, kw_only=True)
class Light:
    """The result of importing a plugin's hooks and options."""

    heavy: tuple[tuple[str, str], ...]
    """Each heavy module that was imported, and the file and line of the import."""
    called: tuple[tuple[str, str, str], ...] = ()
    """The same for each function that was called: the function, the module, the file and line."""
    seconds: float
    printed: str
    """The output that the import wrote to standard output."""
    failed: str | None
    """Why the Python process ended early, or None."""


class _ImportBlocker(importlib.abc.MetaPathFinder):
    """Refuses heavy modules, and records the lines that import them."""

    def __init__(self) -> None:
        self.heavy = HEAVY
        self.asked: list[tuple[str, str]] = []

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> None:
        if fullname.partition(".")[0] not in self.heavy:
            return
        frame = first = sys._getframe(1)
        while frame.f_back is not None and _is_not_the_plugin(frame.f_code.co_filename):
            frame = frame.f_back
        frame = first if _is_not_the_plugin(frame.f_code.co_filename) else frame
        self.asked.append((fullname.partition(".")[0], f"{frame.f_code.co_filename}:{frame.f_lineno}"))
        raise ModuleNotFoundError(f"{fullname} must not be imported by a plugin's hooks or options", name=fullname)


def _is_not_the_plugin(file: str) -> bool:
    return "importlib" in file or file.endswith(("threading.py", "contextlib.py")) or is_core(file)


def heavy_imports(plugin: str) -> Light:
    """Import the hooks and options of `plugin`, a file or a module, in a separate Python process.

    `-P` keeps the working directory out of `sys.path`: nothing in it is imported by accident.
    """
    command = [sys.executable, "-P", "-m", "smollm3_finetune.checks.light", plugin]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False)
    except subprocess.TimeoutExpired:
        return Light(heavy=(), seconds=SECONDS, printed="", failed=f"it did not finish within {SECONDS} s")
    try:
        found = json.loads(done.stdout.splitlines()[-1])
    except (ValueError, IndexError):
        last = next(iter(reversed(done.stderr.strip().splitlines())), "")
        return Light(heavy=(), seconds=0, printed="", failed=f"Python ended with {done.returncode}: {last}")
    return Light(
        heavy=tuple((m, where) for m, where in found["heavy"]),
        called=tuple((f, m, where) for f, m, where in found["called"]),
        seconds=found["seconds"],
        printed=found["printed"],
        failed=None,
    )


def main(plugin: str) -> None:
    """Discover `plugin` alone and import the options of its components; print the heavy imports as JSON."""
    from smollm3_finetune.components.discovery import CORE_DISTRIBUTION, PluginSelection, discover

    blocker = _ImportBlocker()
    sys.meta_path.insert(0, blocker)
    printed, began = io.StringIO(), time.perf_counter()
    with contextlib.redirect_stdout(printed):
        components: list[RegisteredComponent] = []
        with contextlib.suppress(Exception):  # discovery in the other process reports broken plugins
            for component in discover(PluginSelection.of((plugin,), no_plugins=True)).components:
                if component.distribution != CORE_DISTRIBUTION:
                    components.append(component)
                    with contextlib.suppress(Exception):
                        importlib.import_module(component.spec.options.partition(":")[0])
        seconds = time.perf_counter() - began
        heavy, called = blocker.asked, []
        for function, module, where in _calls(blocker, components):
            called.append((function, module, where))
    found = {"heavy": heavy, "called": called, "seconds": seconds, "printed": printed.getvalue()[:200]}
    print(json.dumps(found))


def _calls(blocker: _ImportBlocker, components: Iterable[RegisteredComponent]) -> Iterator[tuple[str, str, str]]:
    """Yields each function that imports a heavy module when it is called once, the module, and the line."""
    from smollm3_finetune.checks.calls import light_calls

    for component in components:
        for name, modules, function in light_calls(component):
            blocker.asked, blocker.heavy = [], modules or HEAVY
            with contextlib.suppress(Exception, SystemExit):  # the checks in the other process report it
                function()
            for module, where in dict.fromkeys(blocker.asked):
                yield f"{name} of {component.title}", module, where


if __name__ == "__main__":
    main(sys.argv[1])
