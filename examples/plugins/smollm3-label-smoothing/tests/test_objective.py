"""Tests: the promises of an objective (conformance kit), and the loss beside torch's own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import pytest
import torch
from smollm3_label_smoothing.objective import SmoothedObjective
from smollm3_label_smoothing.options import SmoothedOptions
from torch.nn import functional as F

from smollm3_finetune.api import IGNORE_INDEX
from smollm3_finetune.testing import ObjectiveConformance, small_source


class TestSmoothed(ObjectiveConformance):
    component = "label-smoothing"


@pytest.mark.long
class TestStronglySmoothed(ObjectiveConformance):
    component = "label-smoothing"
    options: ClassVar[Mapping[str, Any]] = {"smoothing": 0.5}


EXAMPLES = [
    {"input_ids": [5, 6, 7, 8, 9], "labels": [IGNORE_INDEX, IGNORE_INDEX, 7, 8, 9]},
    {"input_ids": [9, 4, 3], "labels": [IGNORE_INDEX, 4, 3]},
]


@pytest.mark.parametrize("layout", ["padded", "flat"])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_the_loss_is_that_of_torch_in_float64(layout: str, smoothing: float) -> None:
    source = small_source()
    model = source.load(dtype=torch.float64).eval()
    objective = SmoothedObjective(SmoothedOptions(smoothing=smoothing))
    collate = objective.collator(source.tokenizer()) if layout == "padded" else objective.flat_collator(None)
    sums, terms = objective.row_losses(model, collate([dict(row) for row in EXAMPLES]))
    assert terms.tolist() == [3, 2]
    for row, found in zip(EXAMPLES, sums, strict=True):
        logits = model(input_ids=torch.tensor([row["input_ids"]]), use_cache=False).logits[0, :-1]
        labels = torch.tensor(row["labels"][1:])
        expected = F.cross_entropy(
            logits, labels, ignore_index=IGNORE_INDEX, reduction="sum", label_smoothing=smoothing
        )
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=0)
    with torch.no_grad():
        total, count = objective.loss_sum(model, collate([dict(row) for row in EXAMPLES]))
    assert (total, count) == (pytest.approx(float(sums.detach().sum())), 5)
    step = objective.trainer_class().compute_loss(None, model, collate([dict(row) for row in EXAMPLES]), False, 10)
    torch.testing.assert_close(step, sums.sum() / 10)  # divided by the tokens of the whole optimizer step
