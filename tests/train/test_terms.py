"""The terms that an objective counts are those of the whole optimizer step, in all processes."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from smollm3_finetune.batching.filler import IDLE, Filled, without_fills
from smollm3_finetune.train.trainer import AdaptedTrainer


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


class Whole:
    """The part of a Trainer that computes the loss; as an objective's Trainer, it knows nothing of fillers."""

    def compute_loss(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> Any:
        assert inputs.keys() == {"input_ids"}
        return model(inputs["input_ids"]).sum() / num_items_in_batch

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> Any:
        loss = self.compute_loss(model, inputs, num_items_in_batch=num_items_in_batch)
        loss.backward()
        return loss


class Idling(AdaptedTrainer, Whole):
    pass


def test_the_batch_of_a_process_without_rows_has_no_terms() -> None:
    idle = {"pairs": [1], IDLE: True}
    trainer = Adapted(2)
    trainer.count_terms = lambda batch: len(batch["pairs"])
    assert float(trainer._get_num_items_in_batch([{"pairs": [1, 2, 3]}, idle], "cpu")) == 2
    assert float(trainer._get_num_items_in_batch([idle], "cpu")) == 0.5
    assert float(Adapted(2)._get_num_items_in_batch([{"labels": [], IDLE: True}], "cpu")) == 0.5
    assert Adapted(2)._get_num_items_in_batch([{IDLE: True}], "cpu") is None


def test_the_loss_of_a_process_without_rows_is_zero_and_all_parameters_have_gradients() -> None:
    trainer, model = Idling(), torch.nn.Linear(3, 1)
    idle = {"input_ids": torch.ones(1, 3), IDLE: True}
    assert float(trainer.training_step(model, idle, num_items_in_batch=0.5)) == 0
    assert trainer.idle and trainer.tokens_seen == 0 and IDLE in idle
    assert all(p.grad is not None and not p.grad.any() for p in model.parameters())
    assert float(trainer.training_step(model, {"input_ids": torch.ones(1, 3)}, num_items_in_batch=0.5)) != 0
    assert not trainer.idle and trainer.tokens_seen == 3


EXAMPLES = [{"input_ids": [n, n], "branches": [0, 1, 1]} for n in range(5)]


@pytest.mark.parametrize(
    ("items", "batches"),
    [
        (EXAMPLES, [([0, 1, 2], False), ([3, 4], False), ([0], True)]),
        ([{"rows": EXAMPLES[:2]}, {"rows": EXAMPLES[2:]}], [([0, 1, 2, 3, 4], False), ([0], True), ([0], True)]),
    ],
    ids=["examples", "packed"],
)
def test_fillers_are_never_combined_with_rows(items: list[Any], batches: list[tuple[list[int], bool]]) -> None:
    shared = Filled(items, 3 * 3)
    assert len(shared) == 9
    for place, (numbers, idle) in enumerate(batches):
        examples, without_rows = without_fills(shared.__getitems__(range(3 * place, 3 * place + 3)))
        assert ([example["input_ids"][0] for example in examples], without_rows) == (numbers, idle)
    assert len(Filled(EXAMPLES, 5)) == 5
