"""`smollm3 train --launcher slurm`, with a stand-in for Slurm that executes the jobs."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.plugins
pytest_plugins = ["smollm3_finetune.testing.fixtures"]
TRAIN = (
    *("train", "--adapter", "full", "--max-length", "64", "--set", "train.sample_tokens=1", "--device", "cpu"),
    *("--set", "train.report=false", "--set", "data.limit=60", "--dtype", "float64"),
)
SLURM = ("--launcher", "slurm", "--launcher-opt", "processes=2")
STEPS = 30
ROUNDING = 1e-5
"""Relative; transformers computes some normalizations in float32."""


@pytest.fixture
def here(tmp_path: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    place = tmp_path / "a b"
    place.mkdir()
    monkeypatch.chdir(place)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    return place


def steps_of(run: str) -> list[dict[str, Any]]:
    file = Path(run, "metrics.jsonl")
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


@pytest.mark.long
def test_a_run_that_is_stopped_in_the_middle_is_requeued_and_continues(
    cluster: Any, here: Path, cli: Callable[..., Any]
) -> None:
    whole = cli(*TRAIN, "--batch-size", "4", "--max-steps", str(STEPS), "--output", "whole")
    assert whole.code == 0, whole.stderr
    done = cli(*TRAIN, *SLURM, "--batch-size", "2", "--max-steps", str(STEPS), "--output", "it's 100%")
    assert done.code == 0, done.stderr
    assert "job 4711 is in the queue" in done.stdout + done.stderr
    assert "squeue -j 4711" in done.stdout + done.stderr
    cluster.until(lambda: len(steps_of("it's 100%")) > 2 or cluster.state() == "FAILED")
    cluster.signal(signal.SIGUSR1)
    refused = cli("train", "--resume", "it's 100%", "--max-steps", str(STEPS + 1))
    assert refused.code != 0
    state = cluster.ended()
    log = Path("it's 100%/launcher/job-4711.log").read_text()
    assert state == "COMPLETED", log
    assert log.count("the job is requeued and will continue the run") == 1
    ours, theirs = steps_of("it's 100%"), steps_of("whole")
    assert [row["step"] for row in ours] == list(range(1, STEPS + 1))
    for row, other in zip(ours, theirs, strict=True):
        assert row["loss"] == pytest.approx(other["loss"], rel=ROUNDING), row["step"]
    report = json.loads(Path("it's 100%/report.json").read_text())
    assert report["steps"] == STEPS
    assert json.loads(Path("it's 100%/versions.json").read_text())["processes"] == 2
    finished = cli("train", "--resume", "it's 100%")
    assert "has finished its" in finished.stderr


def test_dry_run_shows_the_script_where_slurm_is_missing(
    here: Path, cli: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run is planned for the GPUs of the cluster, although this machine has none; nothing is written."""
    monkeypatch.setenv("PATH", str(here))
    gpus = ("--launcher", "slurm", "--launcher-opt", "gpus_per_node=8", "--launcher-opt", "nodes=2")
    shown = cli(*TRAIN[:-4], "--device", "auto", *gpus, "--output", "run", "--dry-run")
    assert shown.code == 0, shown.stderr
    assert "#SBATCH --gpus-per-node=8" in shown.stdout
    assert "launcher 'slurm': 16 processes" in shown.stdout
    assert "\ndevice: cuda" in shown.stdout
    refused = cli(*TRAIN, *SLURM, "--output", "run")
    assert refused.code == 4
    assert "launcher slurm needs the command sbatch, which this machine does not have" in refused.stderr
    assert "login node" in refused.stderr
    assert not Path("run").exists()


def test_a_run_that_waits_in_the_queue_is_not_submitted_again(
    cluster: Any, here: Path, cli: Callable[..., Any]
) -> None:
    """The same command again; and after the job was canceled before it began."""

    held = cluster.place / "4711"
    first = cli(*TRAIN, *SLURM, "--output", "run", "--launcher-opt", "partition=held")
    assert first.code == 0, first.stderr
    handed = Path("run/launch.json").read_bytes()
    again = cli(*TRAIN, *SLURM, "--output", "run", "--max-steps", "7")
    assert again.code == 2
    assert f"the run {here}/run has job 4711, which has not ended" in again.stderr
    assert "squeue -j 4711 shows it; to end it: scancel 4711" in again.stderr
    assert Path("run/launch.json").read_bytes() == handed
    assert Path("run/launcher/slurm-job").read_text() == "4711\n"
    (held / "cancelled").touch()
    cluster.until(lambda: cluster.state(4711) == "CANCELLED")
    third = cli(*TRAIN, *SLURM, "--output", "run", "--launcher-opt", "partition=held")
    assert third.code == 0, third.stderr
    assert Path("run/launcher/slurm-job").read_text() == "4712\n"
    (cluster.place / "4712" / "cancelled").touch()
