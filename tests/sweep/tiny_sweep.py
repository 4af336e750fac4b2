"""A sweep of six tiny trials that run in the process of the test."""

from __future__ import annotations

import os
from pathlib import Path

from smollm3_finetune.api import Launch, Progress
from smollm3_finetune.sweep.trials import ChildProcess

ROWS = Path(__file__).parents[2] / "smollm3_finetune" / "builtin" / "chat.jsonl"
SWEEP = """\
output: found
run:
  model: tiny
  device: cpu
  adapter: {name: lora, target_modules: [q_proj]}
  data: {path: rows.jsonl, validation: held-out.jsonl, max_length: 64}
  train: {max_steps: 2, batch_size: 8, sample_tokens: 1, report: false}
grid:
  adapter.rank: [2, 4, 8]
  train.learning_rate: [1e-3, 1e-4]
"""
NAMES = [f"rank-{rank}_learning_rate-{rate}" for rank in (2, 4, 8) for rate in ("0.001", "0.0001")]


class InThisProcess:
    """In place of a child process: the same work in this one. It knows which trials it was asked to run."""

    def __init__(self) -> None:
        self.trials: list[str] = []

    def __call__(self, launcher: ChildProcess, launch: Launch, progress: Progress) -> None:
        assert launch.command[-2:] == ("--launched", str(launch.run))
        self.trials.append(launch.name)
        launch.work()


def write_files(directory: Path) -> None:
    lines = ROWS.read_text(encoding="utf-8").splitlines(keepends=True)
    (directory / "rows.jsonl").write_text("".join(lines[:24]), encoding="utf-8")
    (directory / "held-out.jsonl").write_text("".join(lines[24:56]), encoding="utf-8")
    (directory / "s.yaml").write_text(SWEEP, encoding="utf-8")


def snapshot(directory: Path) -> dict[str, tuple[int, int, bytes]]:
    """Time of change, inode and content of every file below a directory."""
    files = (Path(folder) / name for folder, _, names in os.walk(directory) for name in names)
    return {str(f.relative_to(directory)): (f.stat().st_mtime_ns, f.stat().st_ino, f.read_bytes()) for f in files}
