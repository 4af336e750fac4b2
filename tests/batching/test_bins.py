"""Packed sequences and length-grouped batches: every row once, few sequences, little memory, set by the seed."""

from __future__ import annotations

import itertools
import json
import tracemalloc
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from smollm3_finetune.batching.attention import PREFIX
from smollm3_finetune.batching.order import LengthGrouped, Shuffled
from smollm3_finetune.batching.packing import Packed, best_fit
from smollm3_finetune.batching.strategy import check_objective
from smollm3_finetune.config.schema import TrainConfig
from smollm3_finetune.errors import IncompatibleError

# --------------------------------------------------------------------------------------------- refused settings


def test_an_objective_without_flat_batches_is_refused_before_weights_are_read() -> None:
    objective: Any = SimpleNamespace(collator=None)
    check_objective(TrainConfig(), objective, "objective 'mine'")
    with pytest.raises(
        IncompatibleError, match=r"train\.padding=never needs an objective with flat_collator\(\); objective 'mine'"
    ):
        check_objective(TrainConfig(padding="never"), objective, "objective 'mine'")


@pytest.mark.plugins
@pytest.mark.parametrize("setting", ["train.packing=true", "train.padding=never"])
def test_packing_with_an_adapter_that_mixes_rows_is_refused_before_weights_are_read(setting: str, cli: Any) -> None:
    result = cli("train", "--adapter", "prompt-tuning", "--set", setting, "--output", "out")
    assert result.code == 3
    message = f"{setting} needs an adapter that keeps packed rows separate; adapter 'prompt-tuning' does not"
    assert message in result.stderr
    assert not Path("out").exists()


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ("train.padding=always", "are mutually exclusive: packed rows are not padded"),
        ("train.group_by_length=true", "are mutually exclusive: both select the rows of a batch"),
    ],
)
def test_contradicting_settings_are_named(other: str, message: str, cli: Any) -> None:
    result = cli("train", "--adapter", "full", "--set", "train.packing=true", "--set", other, "--dry-run")
    assert result.code == 2
    assert message in result.stderr


# ------------------------------------------------------------------------------------------------ whole runs


def test_a_packed_run_counts_its_steps_and_resumes_bit_for_bit(cli: Any) -> None:
    common = ("train", "--adapter", "full", "--set", "data.limit=24", "--set", "train.sample_tokens=2", "--json",
              "--set", "train.packing=true", "--max-length", "128", "--batch-size", "2", "--epochs", "2",
              "--set", "train.schedule=constant")  # fmt: skip
    whole = cli(*common, "--output", "whole")
    report = json.loads(whole.stdout)
    line = next(line for line in whole.stderr.splitlines() if line.startswith("packing"))
    count, sequences = int(line.split()[1]), int(line.split()[4])
    assert count == sum(r["train"] for r in report["rows"]) and sequences < count
    assert 50 < int(line.split()[-2].rstrip("%")) <= 100
    assert report["batches"] == {"padded": False, "logits": "supervised"}
    assert report["steps"] == 2 * -(-sequences // 2)
    assert report["after"]["held_out_loss"] < report["before"]["held_out_loss"]
    half = report["steps"] // 2
    cli(*common, "--output", "part", "--max-steps", str(half), "--set", f"train.save_every={half}")
    assert PREFIX not in (Path("part") / "checkpoints" / f"checkpoint-{half}" / "config.json").read_text()
    resumed = json.loads(cli("train", "--resume", "part", "--max-steps", str(report["steps"]), "--json").stdout)
    assert resumed["after"] == report["after"]


@pytest.mark.plugins
def test_prompt_tuning_trains_and_its_loss_is_measured(cli: Any) -> None:
    result = cli("train", "--adapter", "prompt-tuning", "--max-steps", "2", "--set", "data.limit=30", "--set",
                 "train.sample_tokens=2", "--learning-rate", "0.05", "--set", "train.logits=all")  # fmt: skip
    assert result.code == 0, result.stderr
    assert "padding  rows are padded: adapter 'prompt-tuning' would mix rows" in result.stderr
    (report,) = Path("runs").glob("*/report.json")
    assert json.loads(report.read_text())["batches"] == {"padded": True, "logits": "all"}


# ------------------------------------------------------------------------------------------------- bins, order


def naive_best_fit(lengths: Sequence[int], capacity: int) -> int:
    """The number of bins of best fit, as in textbooks."""
    rooms: list[int] = []
    for length in sorted(lengths, reverse=True):
        fitting = [i for i, room in enumerate(rooms) if room >= length]
        if fitting:
            rooms[min(fitting, key=rooms.__getitem__)] -= length
        else:
            rooms.append(capacity - length)
    return len(rooms)


@pytest.mark.parametrize("capacity", [8, 64, 1000])
def test_bins_contain_every_row_once_and_are_as_few_as_with_best_fit(capacity: int) -> None:
    rng = np.random.default_rng(1)
    lengths = rng.integers(1, capacity + 1, 500).astype(np.int32)
    found, borders = best_fit(lengths, capacity, seed=0)
    assert sorted(found.tolist()) == list(range(500))
    sums = [int(lengths[found[a:b]].sum()) for a, b in itertools.pairwise(borders.tolist())]
    assert max(sums) <= capacity and min(sums) > 0
    assert len(sums) == naive_best_fit(lengths.tolist(), capacity)


def test_bins_depend_on_the_seed_and_a_too_long_row_has_its_own() -> None:
    lengths = np.array([3, 3, 3, 3, 5, 5, 20] * 9, dtype=np.int32)
    first, again, other = (best_fit(lengths, 8, seed)[0].tolist() for seed in (0, 0, 1))
    assert first == again != other
    found, borders = best_fit(lengths, 8, 0)
    alone = [found[a:b].tolist() for a, b in itertools.pairwise(borders.tolist()) if lengths[found[a]] == 20]
    assert all(len(rows) == 1 for rows in alone) and len(alone) == 9


def test_bins_need_a_few_bytes_per_row() -> None:
    def peak(count: int) -> tuple[int, int]:
        lengths = np.random.default_rng(0).integers(1, 900, count).astype(np.int32)
        tracemalloc.start()
        packed = Packed([], lengths, 1024, seed=0)
        stays, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert len(packed) < count
        return stays, most

    (small_stays, small_most), (stays, most) = peak(20_000), peak(120_000)
    assert (stays - small_stays) / 100_000 < 8
    assert (most - small_most) / 100_000 < 40


def test_grouped_batches_contain_each_row_once_with_little_padding() -> None:
    lengths = np.random.default_rng(0).integers(1, 500, 1003).astype(np.int32)

    def padded(order: list[int]) -> int:
        batches = [lengths[order[i : i + 8]] for i in range(0, len(order), 8)]
        return sum(int(b.max()) * len(b) for b in batches)

    sampler = LengthGrouped(lengths, 8, seed=0)
    first, again = list(sampler), list(sampler)
    sampler.set_epoch(1)
    assert first == again != list(sampler)
    assert sorted(first) == list(range(1003)) == sorted(sampler)
    assert lengths[first[:8]].max() == lengths[first[: 64 * 8]].max(), "the longest come first"
    assert padded(first) < 1.1 * lengths.sum() < 1.5 * lengths.sum() < padded(list(Shuffled(1003, 0)))


def test_the_loss_falls_with_length_grouped_batches(cli: Any) -> None:
    result = cli("train", "--adapter", "full", "--max-steps", "5", "--set", "data.limit=40", "--set",
                 "train.sample_tokens=2", "--set", "train.group_by_length=true", "--json")  # fmt: skip
    report = json.loads(result.stdout)
    assert report["after"]["held_out_loss"] < report["before"]["held_out_loss"]
