"""Resuming: damaged checkpoints are reported, and the metrics contain each step once."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

START = (
    "train", "--adapter", "full", "--set", "data.limit=20", "--set", "train.sample_tokens=2", "--max-steps", "4",
    "--set", "train.save_every=2", "--set", "train.schedule=constant", "--output", "out",
)  # fmt: skip


@pytest.fixture
def interrupted(cli: Callable[..., Any]) -> Path:
    """A run of four steps whose last checkpoints are at 2 and 4."""
    assert cli(*START).code == 0
    return Path("out")


def steps(run: Path) -> list[int]:
    return [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()]


def cut_in_half(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def test_a_truncated_checkpoint_is_named(
    cli: Callable[..., Any], interrupted: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("smollm3_finetune.train.run.compose", lambda *a, **k: pytest.fail("weights were read"))
    newest = interrupted / "checkpoints" / "checkpoint-4"
    for name in ("optimizer.pt", "scheduler.pt", "trainer_state.json", "rng_state.pth"):
        whole = (newest / name).read_bytes()
        for damaged in (whole[: len(whole) // 2], whole[:-1] if name.endswith("json") else whole[:-30], b""):
            (newest / name).write_bytes(damaged.rstrip(b"}\n") if name.endswith("json") else damaged)
            result = cli("train", "--resume", "out", "--max-steps", "6")
            assert (result.code, result.stdout) == (6, ""), result.stderr
            message, hint = result.stderr.splitlines()
            assert message.startswith(f"error: {newest / name} is damaged: ")
            assert hint == f"  hint: rm -r {newest}, to use the checkpoint before it"
        (newest / name).write_bytes(whole)
    for wrong in ("[]", '{"global_step": "4", "log_history": []}', '{"global_step": 4}'):
        (newest / "trainer_state.json").write_text(wrong)
        assert cli("train", "--resume", "out", "--max-steps", "6").code == 6


def test_a_checkpoint_that_torch_cannot_read_is_named(cli: Callable[..., Any], interrupted: Path) -> None:
    """A valid archive with other contents."""
    import torch

    newest = interrupted / "checkpoints" / "checkpoint-4"
    torch.save({"state": "of nothing"}, newest / "optimizer.pt")
    result = cli("train", "--resume", "out", "--max-steps", "6")
    assert (result.code, result.stdout) == (6, ""), result.stderr
    assert f"error: the checkpoint {newest} is damaged: " in result.stderr
    assert f"hint: rm -r {newest}" in result.stderr


def test_the_hint_works_and_the_metrics_contain_each_step_once(cli: Callable[..., Any], interrupted: Path) -> None:
    newest = interrupted / "checkpoints" / "checkpoint-4"
    cut_in_half(newest / "optimizer.pt")
    assert cli("train", "--resume", "out", "--max-steps", "6").code == 6
    shutil.rmtree(newest)
    with (interrupted / "metrics.jsonl").open("a") as stream:
        stream.write('{"step": 5, "lo')  # killed while it was written
    before = (interrupted / "metrics.jsonl").read_text().splitlines()[:2]
    resumed = cli("train", "--resume", "out", "--max-steps", "6")
    assert resumed.code == 0, resumed.stderr
    assert steps(interrupted) == [1, 2, 3, 4, 5, 6]
    assert (interrupted / "metrics.jsonl").read_text().splitlines()[:2] == before
    assert not (interrupted / "metrics.partial").exists()


def test_resuming_with_other_rows_is_refused(cli: Callable[..., Any]) -> None:
    rows = Path("rows.jsonl")
    line = '{"prompt": "What is %d and one?", "completion": "It is %d."}\n'
    rows.write_text("".join(line % (n, n + 1) for n in range(20)), encoding="utf-8")
    made = cli(
        *("train", "--adapter", "full", "--data", "rows.jsonl", "--max-steps", "2", "--output", "run"),
        *("--set", "train.save_every=2", "--set", "train.sample_tokens=2"),
    )
    assert made.code == 0, made.stderr
    before = Path("run/run.yaml").read_text()
    with rows.open("a", encoding="utf-8") as stream:
        stream.write(line % (20, 21))
    refused = cli("train", "--resume", "run", "--max-steps", "4")
    assert refused.code == 3
    assert "the rows of the run run, or their rendering, have changed" in refused.stderr
    assert "--config run/run.yaml" in refused.stderr
    assert Path("run/run.yaml").read_text() == before
    rows.write_text("".join(line % (n, n + 1) for n in range(20)), encoding="utf-8")
    assert cli("train", "--resume", "run", "--max-steps", "4").code == 0


def test_the_number_of_processes_cannot_change(cli: Callable[..., Any], interrupted: Path) -> None:
    versions = interrupted / "versions.json"
    versions.write_text(versions.read_text().replace('"processes": 1', '"processes": 2'))
    refused = cli("train", "--resume", str(interrupted))
    assert refused.code == 3
    assert "was started with 2 processes, but 1 are running" in refused.stderr
    assert "--nproc-per-node 2" in refused.stderr


def test_a_damaged_only_checkpoint_has_no_earlier_one_to_suggest(cli: Callable[..., Any], interrupted: Path) -> None:
    shutil.rmtree(interrupted / "checkpoints" / "checkpoint-2")
    newest = interrupted / "checkpoints" / "checkpoint-4"
    cut_in_half(newest / "scheduler.pt")
    result = cli("train", "--resume", "out", "--max-steps", "6")
    assert result.stderr.splitlines()[-1] == f"  hint: rm -r {newest}"
