"""The terms that an objective counts are those of the whole optimizer step, in all processes."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from smollm3_finetune.train.trainer import AdaptedTrainer, _shared


class Tokens:
    """The part of a Trainer that counts supervised tokens; None if the batches have no labels."""

    def _get_num_items_in_batch(self, batch_samples: list[Any], device: Any) -> Any:
        return torch.tensor(7) if "labels" in batch_samples[0] else None


class Adapted(AdaptedTrainer, Tokens):
    def __init__(self, processes: int) -> None:
        self.args = SimpleNamespace(world_size=processes)
        self.accelerator = SimpleNamespace(reduce=lambda count: count + 1)  # the other process has one term


@pytest.mark.parametrize(("processes", "expected"), [(1, 4), (2, 2.5)])
def test_terms_of_all_batches_are_summed_and_averaged_over_processes(processes: int, expected: float) -> None:
    trainer = Adapted(processes)
    trainer.count_terms = lambda batch: len(batch["pairs"])
    assert float(trainer._get_num_items_in_batch([{"pairs": [1, 2, 3]}, {"pairs": [4]}], "cpu")) == expected


@pytest.mark.parametrize(("processes", "expected"), [(1, 7), (2, 4)])
def test_supervised_tokens_are_counted_without_terms(processes: int, expected: float) -> None:
    assert float(Adapted(processes)._get_num_items_in_batch([{"labels": []}], "cpu")) == expected
    assert Adapted(processes)._get_num_items_in_batch([{}], "cpu") is None


@pytest.mark.parametrize(("processes", "counted", "length"), [(1, False, 3), (2, False, 4), (2, True, 3)])
def test_no_filler_example_is_counted_as_a_term(processes: int, counted: bool, length: int) -> None:
    examples = [{"input_ids": [1, 2, 3], "labels": [-100, 2, 3]}] * 3
    args: Any = SimpleNamespace(world_size=processes, train_batch_size=1)
    assert len(_shared(examples, args, counted=counted)) == length
