"""The short form of `kills.py`: commands that are ended at random end with the result of an undisturbed command."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from faults import needs_shim


@needs_shim
@pytest.mark.parametrize(
    ("command", "trials"),
    [
        ("train none full", 3),
        pytest.param("pipeline", 20, marks=pytest.mark.long),
        pytest.param("sft, apo, merge, gptq", 20, marks=[pytest.mark.long, pytest.mark.plugins]),
    ],
)
def test_a_command_that_is_ended_at_random_ends_with_the_same_files(command: str, trials: int, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("kills.py")), "--trials", str(trials), "--jobs", "1",
         "--only", command, "--keep", str(tmp_path / "failures")],
        capture_output=True, text=True, timeout=3600, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    row = next(line for line in done.stdout.splitlines() if line.startswith(f"| {command} |"))
    *kinds, equal, different, failed, hung = map(int, row.strip("| ").split(" | ")[1:])
    assert sum(kinds) == equal == trials
    assert different == failed == hung == 0
