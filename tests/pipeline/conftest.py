"""A pipeline of four tiny stages, run once for all tests; each test gets a copy."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from smollm3_finetune.testing.commands import smollm3

ROUNDING = Path(__file__).parents[1] / "out_of_tree" / "rounding_quantizer.py"
ROWS = Path(__file__).parents[2] / "smollm3_finetune" / "builtin" / "chat.jsonl"
CHAIN = f"""\
output: pipe
plugins: ["{ROUNDING}"]
device: cpu
train: {{max_steps: 3, batch_size: 4, sample_tokens: 1, save_every: 1}}
calibration: {{rows: 8}}
stages:
  - name: sft
    adapter: full
    data: {{path: rows.jsonl, max_length: 64}}
  - name: more
    from: sft
    data: {{path: rows.jsonl, max_length: 48}}
    train: {{max_steps: 2, learning_rate: 1e-4}}
  - name: merged
    from: more
    merge: true
  - name: q
    from: merged
    quantize: {{name: rounding-rows, bits: 8}}
    data: {{path: rows.jsonl, max_length: 64}}
  - name: check
    from: more
    eval: {{answers: 0, null_adapter: false}}
"""


def write_files(directory: Path) -> None:
    lines = ROWS.read_text(encoding="utf-8").splitlines(keepends=True)
    (directory / "rows.jsonl").write_text("".join(lines[:24]), encoding="utf-8")
    (directory / "p.yaml").write_text(CHAIN, encoding="utf-8")


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The directory in which the pipeline was run; do not modify it."""
    place = tmp_path_factory.mktemp("pipeline")
    write_files(place)
    with contextlib.chdir(place), pytest.MonkeyPatch.context() as patch:
        patch.setenv("SMOLLM3_CACHE", str(place / "cache"))
        result = smollm3("pipeline", "run", "p.yaml", "--json")
    assert result.code == 0, result.stderr
    (place / "p.yaml").unlink()  # a copy of the pipeline belongs to the file beside it
    yield place
    shutil.rmtree(place, ignore_errors=True)


@pytest.fixture
def copied(finished: Path, isolated: Path) -> Path:
    """A copy of the finished pipeline in the working directory."""
    shutil.copytree(finished / "pipe", isolated / "pipe")
    write_files(isolated)
    return isolated / "pipe"


@pytest.fixture
def fresh(finished: Path, isolated: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file and the rows in the working directory, and a cache with their tokens; nothing was run there."""
    write_files(isolated)
    shutil.copytree(finished / "cache", isolated / "cache")
    monkeypatch.setenv("SMOLLM3_CACHE", str(isolated / "cache"))
    return isolated


@pytest.fixture
def edit(isolated: Path) -> Callable[[str, str], None]:
    """Replace a text in the file of the pipeline."""

    def replace(old: str, new: str) -> None:
        text = Path("p.yaml").read_text(encoding="utf-8")
        assert old in text
        Path("p.yaml").write_text(text.replace(old, new), encoding="utf-8")

    return replace


@pytest.fixture
def status(cli: Callable[..., Any]) -> Callable[[], dict[str, dict[str, Any]]]:
    """What `pipeline status --json` says about each stage."""

    def read() -> dict[str, dict[str, Any]]:
        about = cli("pipeline", "status", "p.yaml", "--json").report()
        return {stage["stage"]: stage for stage in about["stages"]}

    return read
