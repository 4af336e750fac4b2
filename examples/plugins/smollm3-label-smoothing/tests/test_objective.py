"""Tests: the promises of an objective, the supervised tokens, and the loss computed by hand."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
from smollm3_finetune.api import IGNORE_INDEX
from smollm3_finetune.testing import ObjectiveConformance

from smollm3_label_smoothing.objective import LabelSmoothingObjective, token_losses
from smollm3_label_smoothing.options import LabelSmoothingOptions


class TestLabelSmoothing(ObjectiveConformance):
    """The tests of the kit: training, held-out loss, batches, accumulation, and a resumed run."""

    component = "label-smoothing"


@pytest.fixture
def objective() -> LabelSmoothingObjective:
    return LabelSmoothingObjective(LabelSmoothingOptions())


def test_the_loss_is_the_one_computed_by_hand() -> None:
    """A vocabulary of four and two tokens, one supervised: its logits are 0, 0, 0, 2, its target is the last."""
    logits = torch.tensor([[[0.0, 0.0, 0.0, 2.0], [9.0, 9.0, 9.0, 9.0]]])
    log_total = math.log(3 + math.exp(2))
    plain, mean = log_total - 2, log_total - 0.5
    labels = torch.tensor([[IGNORE_INDEX, 3]])
    assert float(token_losses(logits, labels, 0.0)) == pytest.approx(plain)
    assert float(token_losses(logits, labels, 0.2)) == pytest.approx(0.8 * plain + 0.2 * mean)


def test_a_row_without_supervised_tokens_is_skipped(objective: LabelSmoothingObjective) -> None:
    def renderer(labels: list[int]) -> SimpleNamespace:
        return SimpleNamespace(encode=lambda c, n: SimpleNamespace(input_ids=[1, 2, 3], labels=labels))

    assert objective.prepare(None, renderer([IGNORE_INDEX] * 3), 8) is None
    expected = {"input_ids": [1, 2, 3], "labels": [IGNORE_INDEX, 2, 3]}
    assert objective.prepare(None, renderer([IGNORE_INDEX, 2, 3]), 8) == expected


def test_the_trainer_has_the_smoothing_of_the_options() -> None:
    trainer = LabelSmoothingObjective(LabelSmoothingOptions(smoothing=0.3)).trainer_class()
    assert trainer.smoothing == 0.3


def test_the_held_out_loss_is_a_sum_and_a_count_also_of_each_row(objective: LabelSmoothingObjective) -> None:
    def model(input_ids: torch.Tensor, use_cache: bool) -> SimpleNamespace:
        return SimpleNamespace(logits=torch.zeros(*input_ids.shape, 4))

    labels = torch.tensor([[IGNORE_INDEX, 2, 3], [IGNORE_INDEX, IGNORE_INDEX, 3]])
    batch = {"input_ids": torch.tensor([[1, 2, 3], [1, 2, 3]]), "labels": labels}
    sums, terms = objective.row_losses(model, batch)
    assert terms.tolist() == [2, 1]
    assert sums.tolist() == pytest.approx([2 * math.log(4), math.log(4)])  # of equal logits, whatever the smoothing
    assert objective.loss_sum(model, batch) == (pytest.approx(3 * math.log(4)), 3)
