"""The retained share: its value and interval, and when it is not known."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from smollm3_finetune.evaluation.line import retained_line
from smollm3_finetune.evaluation.retained import Retained, retained, retained_warning, ship_as_line, unknown
from smollm3_finetune.evaluation.row_losses import RowLosses

ROWS = 120


def losses(means: np.ndarray, terms: np.ndarray) -> RowLosses:
    sources = np.zeros(len(means), dtype=np.int64)
    return RowLosses(sums=means * terms, terms=terms, sources=sources, titles=("rows",))


def three(share: float, *, gain: float = 0.5, noise: float = 0.02, rows: int = ROWS, seed: int = 0) -> list[RowLosses]:
    """The losses of a base, of an adapter that gains about `gain`, and of a model that keeps about `share` of it."""
    random = np.random.default_rng(seed)
    terms = random.integers(5, 60, rows)
    base = 3 + random.normal(0, 0.5, rows)
    gains = gain + random.normal(0, 0.2, rows)
    shipped = base - share * gains + random.normal(0, noise, rows)
    return [losses(one, terms) for one in (base, base - gains, shipped)]


@pytest.mark.parametrize("share", [1.0, 0.6, 0.0, -0.5])
def test_the_share_is_the_ratio_of_the_gains(share: float) -> None:
    base, adapter, shipped = three(share)
    found = retained(base, adapter, shipped)
    exact = (base.loss.mean - shipped.loss.mean) / (base.loss.mean - adapter.loss.mean)
    assert found.share == pytest.approx(exact, rel=1e-12)
    assert found.low is not None and found.high is not None
    assert found.low < share < found.high and found.high - found.low < 0.05
    assert (found.rows, found.reason) == (ROWS, None)
    assert found.base == pytest.approx(base.loss.mean)


def test_the_interval_covers_the_true_share_about_as_often_as_it_says() -> None:
    """With the noise of rows as large as a tenth of the gain, over 60 draws of 60 rows."""
    covered = 0
    for seed in range(60):
        found = retained(*three(0.7, noise=0.3, rows=60, seed=seed))
        assert found.low is not None and found.high is not None
        covered += found.low <= 0.7 <= found.high
    assert 52 <= covered <= 60


@pytest.mark.parametrize(
    ("case", "reason"),
    [
        (three(1.0, gain=0.0), "training did not clearly lower the held-out loss"),
        (three(1.0, gain=-0.5), "training did not clearly lower the held-out loss"),
        (three(1.0, rows=3), "3 held-out rows are too few: at least 5 are needed"),
    ],
)
def test_without_a_clear_gain_nothing_is_known(case: list[RowLosses], reason: str) -> None:
    found = retained(*case)
    assert found.share is None and found.enough
    assert found.reason is not None and reason in found.reason
    assert retained_line(found.as_json()).startswith("not known: ")
    assert retained_warning(found) is None


def test_a_model_whose_loss_is_not_a_number_is_named() -> None:
    base, adapter, shipped = three(1.0)
    shipped.sums[3] = np.nan
    found = retained(base, adapter, shipped)
    assert found.reason == "the held-out loss of the shipped model is not a finite number"
    assert found.shipped is None, "JSON cannot represent it"


def test_a_small_share_is_a_warning_and_a_large_one_is_not() -> None:
    warning = retained_warning(retained(*three(0.3)))
    assert warning is not None and warning.startswith("the shipped model keeps only 0.3")
    assert "95 % interval" in warning
    assert retained_warning(retained(*three(0.95))) is None
    assert retained_warning(unknown("no rows")) is None


def test_the_line_states_the_share_its_interval_and_the_losses() -> None:
    found = Retained(share=0.9312, low=0.88, high=0.984, rows=150, base=2.0, adapter=1.5, shipped=1.5344)
    assert retained_line(found.as_json()) == (
        "0.93 of the gain (95 % interval 0.88 to 0.98; held-out loss 2.000 base, 1.500 adapter, 1.534 shipped; "
        "150 rows)"
    )


def test_the_line_says_how_an_adapter_was_measured_that_was_trained_for_the_format() -> None:
    base, adapter, _ = three(1.0)
    found = retained(base, adapter, adapter, as_shipped=True)
    assert found.share == 1.0
    assert "adapter, computing as shipped, " in retained_line(found.as_json())


def test_the_command_names_the_configuration_and_the_options() -> None:
    options = {"type": "q4", "fast": True, "layers": ["a", "b"]}
    assert ship_as_line(Path("my run/run.yaml"), "coarse", options) == (
        "smollm3 train --config 'my run/run.yaml' --ship-as coarse --ship-as-opt type=q4 "
        "--ship-as-opt fast=true --ship-as-opt layers=a,b"
    )
