"""The line of a plugin at which an exception arose: never a line of core, which the plugin called."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from smollm3_finetune.errors import SmolLM3Error

CORE = Path(__file__).resolve().parents[1]


def own_line(error: BaseException) -> str | None:
    """`mine.py:12`: the innermost line in the plugin's own files; None if the traceback has none."""
    lines = [(file, number) for file, number in _lines(error) if not is_core(file)]
    if not lines:
        return None
    root = _root(lines[0][0])
    file, number = next((file, number) for file, number in reversed(lines) if file == root or _inside(file, root))
    return f"{shown_path(file)}:{number}"


def raised_at(error: BaseException) -> str | None:
    """`own_line` for an exception that the plugin did not raise on purpose; a SyntaxError names its line itself."""
    return None if isinstance(error, SmolLM3Error | SyntaxError) else own_line(error)


def is_core(file: str) -> bool:
    """Whether a file belongs to core or to Python's import system; the built-in plugin does not."""
    return (
        file.startswith("<frozen ") or file == "<string>" or (_inside(file, CORE) and "builtin" not in Path(file).parts)
    )


def shown_path(file: str) -> str:
    """A path relative to the working directory if it is inside it."""
    here = os.getcwd()
    return os.path.relpath(file, here) if file.startswith(here + os.sep) else file


def _lines(error: BaseException) -> Iterator[tuple[str, int]]:
    trace = error.__traceback__
    while trace is not None:
        yield trace.tb_frame.f_code.co_filename, trace.tb_lineno
        trace = trace.tb_next


def _root(file: str) -> str | Path:
    """The top-level package of a file, or the file itself if it is not in a package."""
    folder = Path(file).parent
    if not (folder / "__init__.py").exists():
        return file
    while (folder.parent / "__init__.py").exists():
        folder = folder.parent
    return folder


def _inside(file: str, folder: str | Path) -> bool:
    return file.startswith(f"{folder}{os.sep}")
