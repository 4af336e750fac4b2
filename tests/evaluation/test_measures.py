"""Measures of held-out rows beside the loss: what objectives may return, intervals, and how runs keep and show them."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
import torch

from smollm3_finetune import load_model
from smollm3_finetune.api import NoOptions
from smollm3_finetune.builtin.sft import SupervisedFineTuning
from smollm3_finetune.errors import PluginError
from smollm3_finetune.evaluation.line import measure_lines
from smollm3_finetune.evaluation.measures import compare_measures
from smollm3_finetune.evaluation.row_losses import RowLosses, joined, measure_rows
from smollm3_finetune.evaluation.row_measures import averaged_measures
from smollm3_finetune.report.measures import measures_of

ROWS = [
    {"input_ids": [5, 6, 7, 8, 9][:n] * 3, "labels": [-100, 6, 7, 8, 9][:n] + [5, 6, 7, 8, 9][:n] * 2}
    for n in (5, 2, 4, 3)
]


class Measuring(SupervisedFineTuning):
    """Also measures the number of tokens of each row; rows of 15 tokens have no `short`."""

    more: Mapping[str, Any] = {}

    def row_measures(self, model: Any, batch: Any) -> Mapping[str, torch.Tensor]:
        losses, terms = self.row_losses(model, batch)
        tokens = batch["attention_mask"].sum(1)
        return {
            "loss": losses,
            "terms": terms,
            "tokens": tokens,
            "short": torch.where(tokens < 15, 1.0, torch.nan),
            **self.more,
        }


@pytest.fixture(scope="module")
def measure() -> Callable[..., RowLosses]:
    loaded = load_model("tiny", dtype="float64")
    collate = SupervisedFineTuning(NoOptions()).collator(loaded.tokenizer)
    return lambda objective, batch_size: measure_rows(loaded.model, objective, ROWS, collate, batch_size)


def test_measures_are_those_of_each_row_in_batches_of_any_size(measure: Any) -> None:
    plain = measure(SupervisedFineTuning(NoOptions()), 4)
    for size in (1, 3, 4):
        found = measure(Measuring(NoOptions()), size)
        assert np.abs(found.sums / plain.sums - 1).max() < 1e-12 and found.terms.tolist() == plain.terms.tolist()
        assert found.measures["tokens"].tolist() == [15, 6, 12, 9]
        assert np.isnan(found.measures["short"]).tolist() == [True, False, False, False]
    assert plain.measures == {}
    assert found.report()["measures"] == {"tokens": 10.5, "short": 1.0}
    assert "measures" not in plain.report()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"odd": torch.zeros(3)}, r"'odd' with the shape \(3,\) for a batch of 4 examples; it must be \(4,\)"),
        ({"a b": torch.zeros(4)}, "the name 'a b'"),
        ({"odd": torch.full((4,), math.inf)}, "'odd' is infinite"),
    ],
)
def test_a_measure_that_is_not_one_number_for_each_example_is_named(
    more: Mapping[str, Any], message: str, measure: Any
) -> None:
    objective = Measuring(NoOptions())
    objective.more = more
    with pytest.raises(PluginError, match=r"row_measures\(\) of Measuring.*" + message):
        measure(objective, 4)


def test_a_mapping_without_the_loss_is_refused(measure: Any) -> None:
    class Lossless(SupervisedFineTuning):
        def row_measures(self, model: Any, batch: Any) -> Any:
            return {"accuracy": torch.ones(4)}

    with pytest.raises(PluginError, match=r"returned \['accuracy'\]") as caught:
        measure(Lossless(NoOptions()), 4)
    assert caught.value.hint == "return a mapping that has 'loss' and 'terms'"


def test_the_loss_of_terms_that_are_not_tokens_has_no_perplexity(measure: Any) -> None:
    class Rows(Measuring):
        def terms(self, batch: Any) -> int:
            return len(batch["input_ids"])

    assert measure(Measuring(NoOptions()), 4).report()["perplexity"] > 1
    assert measure(Rows(NoOptions()), 4).report()["perplexity"] is None


def losses(*values: float, title: str = "a", **measures: list[float]) -> RowLosses:
    count = len(values)
    return RowLosses(
        sums=np.array(values), terms=np.ones(count, dtype=np.int64), sources=np.zeros(count, dtype=np.int64),
        titles=(title,), measures={n: np.array(v) for n, v in measures.items()}, per_token=False,
    )  # fmt: skip


def test_measures_are_kept_when_rows_are_saved_joined_and_left_out() -> None:
    both = joined([losses(1, 2, accuracy=[0, 1]), losses(title="b"), losses(3, title="c", accuracy=[math.nan])])
    assert both.measures["accuracy"][:2].tolist() == [0, 1] and math.isnan(both.measures["accuracy"][2])
    assert both.of_source(0).measures["accuracy"].tolist() == [0, 1]
    assert both.without([0]).measures["accuracy"][0] == 1
    again = RowLosses.from_json(json.loads(json.dumps(both.as_json(), allow_nan=False)), both.titles)
    assert again is not None and not again.per_token
    np.testing.assert_array_equal(again.measures["accuracy"], both.measures["accuracy"])
    earlier = {n: v for n, v in both.as_json().items() if n not in ("measures", "per_token")}  # of an earlier version
    kept = RowLosses.from_json(earlier, both.titles)
    assert kept is not None and kept.measures == {} and kept.per_token
    for wrong in ({"a": [1]}, {"a": "xyz"}, [1]):
        assert RowLosses.from_json({**both.as_json(), "measures": wrong}, both.titles) is None


def test_means_and_the_paired_difference_have_intervals() -> None:
    generator = np.random.default_rng(0)
    first = generator.normal(0, 1, 200)
    second = first + 0.5 + generator.normal(0, 0.1, 200)
    before = losses(*np.zeros(200), margin=first.tolist())
    after = losses(*np.zeros(200), margin=second.tolist())
    found = compare_measures(before, after, seed=0)["margin"]
    assert found.before is not None and found.difference is not None
    assert found.rows == 200 and found.after.mean == pytest.approx(second.mean())
    assert found.difference.mean == pytest.approx((second - first).mean())
    assert found.difference.low is not None and found.difference.high is not None
    assert found.after.low is not None and found.after.high is not None
    paired, alone = found.difference.high - found.difference.low, found.after.high - found.after.low
    expected = 2 * 1.96 * (second - first).std(ddof=1) / math.sqrt(200)
    assert paired == pytest.approx(expected, rel=0.1)
    assert alone > 5 * paired  # the rows of both are the same, so their spread cancels
    assert compare_measures(before, after, seed=0) == compare_measures(before, after, seed=0)
    (line,) = measure_lines({"margin": found.as_json()})
    assert line == "margin 0.015 → 0.506 ± 0.136 (+0.491 ± 0.014)"


def test_rows_without_a_value_or_left_out_do_not_count() -> None:
    before = losses(0, 0, 0, 0, reward=[0, math.nan, 0, 0], odd=[math.nan] * 4)
    after = losses(0, 0, 0, 0, reward=[1, math.nan, 2, 100], odd=[math.nan] * 4)
    found = compare_measures(before, after, seed=0, excluded=[3])
    assert list(found) == ["reward"]
    assert found["reward"].rows == 2 and found["reward"].after.mean == 1.5
    with pytest.raises(ValueError, match="different rows"):
        compare_measures(losses(0, reward=[0]), after, seed=0)


def test_rows_that_all_have_the_same_value_give_no_interval() -> None:
    before, after = losses(*[0] * 40, accuracy=[0.5] * 40), losses(*[0] * 40, accuracy=[1.0] * 40)
    found = compare_measures(before, after, seed=0)["accuracy"]
    assert (found.after.mean, found.after.low, found.after.high) == (1.0, None, None)
    assert measure_lines({"accuracy": found.as_json()}) == ["accuracy 0.500 → 1.000 (+0.500)"]


def test_one_model_alone_has_means() -> None:
    found = compare_measures(None, losses(0, 0, 0, margin=[1, 2, 4]), seed=0)["margin"]
    assert found.before is None and found.difference is None and found.after.mean == pytest.approx(7 / 3)
    (line,) = measure_lines({"margin": found.as_json()})
    assert line.startswith("margin 2.3") and "→" not in line


def test_examples_of_one_row_are_averaged() -> None:
    owner = np.array([0, 0, 1, 2])
    found = averaged_measures({"a": np.array([1, 3, 5, math.nan])}, owner, 3)["a"]
    assert found[:2].tolist() == [2, 5] and math.isnan(found[2])


def test_the_page_shows_measures_and_leaves_out_damaged_ones() -> None:
    mean = {"mean": 0.5, "low": 0.4, "high": 0.6}
    good = {
        "rows": 40,
        "before": mean,
        "after": {**mean, "mean": 0.75},
        "difference": {"mean": 0.25, "low": 0.2, "high": 0.3},
    }
    (found,) = measures_of({"measures": {"chosen_reward": good, "bad": {"rows": 3}, "worse": 7}})
    assert (found.name, found.rows, found.before, found.after) == ("chosen reward", "40", "0.5", "0.75")
    assert (found.difference, found.interval) == ("+0.250", "+0.200 to +0.300")
    assert measures_of({}) == measures_of({"measures": []}) == []
