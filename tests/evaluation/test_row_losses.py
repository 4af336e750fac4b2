"""The losses of single rows: objectives with and without `row_losses`, and how a run keeps them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch

from smollm3_finetune import load_model
from smollm3_finetune.api import NoOptions, row_logps
from smollm3_finetune.builtin.sft import SupervisedFineTuning
from smollm3_finetune.errors import PluginError
from smollm3_finetune.evaluation.row_losses import RowLosses, joined, measure_rows

ROWS = [
    {"input_ids": [5, 6, 7, 8, 9][:n] * 3, "labels": [-100, 6, 7, 8, 9][:n] + [5, 6, 7, 8, 9][:n] * 2}
    for n in (5, 2, 4, 3)
]


@pytest.fixture(scope="module")
def measure() -> Callable[..., RowLosses]:
    loaded = load_model("tiny", dtype="float64")
    collate = SupervisedFineTuning(NoOptions()).collator(loaded.tokenizer)
    return lambda objective, batch_size: measure_rows(loaded.model, objective, ROWS, collate, batch_size)


class Plain:
    """The same loss without `row_losses`."""

    def __init__(self) -> None:
        self.sizes: list[int] = []

    def __getattr__(self, name: str) -> Any:
        if name == "row_losses":
            raise AttributeError(name)
        return getattr(SupervisedFineTuning(NoOptions()), name)

    def loss_sum(self, model: Any, batch: Mapping[str, Any]) -> tuple[float, int]:
        self.sizes.append(len(batch["input_ids"]))
        return -float(row_logps(model, batch).sum()), int((batch["labels"][:, 1:] != -100).sum())


def test_an_objective_without_row_losses_is_measured_row_by_row(measure: Any) -> None:
    plain = Plain()
    alone, together = measure(plain, 4), measure(SupervisedFineTuning(NoOptions()), 4)
    assert plain.sizes == [1, 1, 1, 1]
    assert alone.terms.tolist() == together.terms.tolist() == [14, 5, 11, 8]
    assert np.abs(alone.sums / together.sums - 1).max() < 1e-12


def test_an_objective_that_returns_other_than_one_value_for_each_example_is_named(measure: Any) -> None:
    class Halved(SupervisedFineTuning):
        def row_losses(self, model: Any, batch: Any) -> Any:
            return torch.zeros(2), torch.ones(2)

    with pytest.raises(
        PluginError, match=r"row_losses\(\) of Halved returned the shapes \(2,\) and \(2,\) for a batch"
    ):
        measure(Halved(NoOptions()), 4)


def losses(*sums: float, title: str = "a") -> RowLosses:
    return RowLosses(
        sums=np.array(sums), terms=np.arange(1, len(sums) + 1), sources=np.zeros(len(sums), dtype=int), titles=(title,)
    )


def test_sources_are_joined_and_taken_apart() -> None:
    both = joined([losses(1.0, 4.0, title="a"), losses(title="b"), losses(2.0, title="c")])
    assert both.sources.tolist() == [0, 0, 2]
    assert both.of_source(0).loss.mean == 5 / 3
    assert both.report() == {
        "held_out_loss": 7 / 4, "perplexity": pytest.approx(np.exp(7 / 4)), "by_source": {"a": 5 / 3, "c": 2.0},
    }  # fmt: skip
    assert joined([losses(), losses()]).report() == {"held_out_loss": None, "perplexity": None}


def test_json_holds_the_losses_exactly() -> None:
    both = joined([losses(0.1, 2 / 3), losses(1e-9)])
    again = RowLosses.from_json(json.loads(json.dumps(both.as_json())), ["x", "y"])
    assert again is not None
    assert (again.titles, again.sums.tolist()) == (("x", "y"), both.sums.tolist())
    assert again.has_rows_of(both)


WHOLE: dict[str, Any] = {"rows_by_source": [1, 1], "terms": [3, 4], "losses": [1.0, 2.0]}


DAMAGED: dict[str, list[Any]] = {
    "rows_by_source": [[2], [3, -1], [10**12, 0], "12"],
    "terms": [{}, [[3], [4]], [10**30, 1], [3]],
    "losses": [[1.0], ["x", "y"], [1.0, float("inf")], None],
}


@pytest.mark.parametrize(
    "damaged", [None, [], {}, "text", *({**WHOLE, key: value} for key in DAMAGED for value in DAMAGED[key])]
)
def test_losses_that_are_damaged_are_not_used(damaged: Any) -> None:
    read = partial(RowLosses.from_json, titles=["a", "b"])
    assert read(WHOLE) is not None
    assert read(damaged) is None
