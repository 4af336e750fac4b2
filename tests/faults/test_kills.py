"""The short form of `kills.py`: commands that are ended at random end with the result of an undisturbed command."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from faults import needs_shim


@needs_shim
@pytest.mark.parametrize("command", ["train none full"])
def test_a_command_that_is_ended_at_random_ends_with_the_same_files(command: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("kills.py")), "--trials", "3", "--jobs", "1", "--only", command,
         "--keep", str(tmp_path / "failures")],
        capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    row = next(line for line in done.stdout.splitlines() if line.startswith(f"| {command} |"))
    *kinds, equal, different, failed, hung = map(int, row.strip("| ").split(" | ")[1:])
    assert sum(kinds) == equal == 3
    assert different == failed == hung == 0
