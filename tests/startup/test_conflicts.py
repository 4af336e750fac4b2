"""No file of the repository has the marks of a merge that was not finished."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MARKS = (f"{'<' * 7} ", f"{'>' * 7} ", f"{'|' * 7} ")


def marked(text: str) -> list[int]:
    """The lines, from 1, that begin with a mark."""
    return [n for n, line in enumerate(text.splitlines(), 1) if line.startswith(MARKS)]


def test_no_file_has_marks_of_a_merge() -> None:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("the repository is not a git checkout")
    found = []
    for name in filter(None, listed.stdout.split("\0")):
        try:
            text = (ROOT / name).read_text(encoding="utf-8")
        except (UnicodeDecodeError, FileNotFoundError):
            continue
        found += [f"{name}:{line}" for line in marked(text)]
    assert not found


def test_a_mark_is_found() -> None:
    assert marked(f"a\n{MARKS[0]}HEAD\nb") == [2]
