"""The verdict on a change of the held-out loss: the statistics, the rules and the line that users see."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pytest

from smollm3_finetune.evaluation import bootstrap
from smollm3_finetune.evaluation.row_losses import RowLosses
from smollm3_finetune.evaluation.verdict import Comparison, compare


def losses(sums: Any, terms: Any, sources: Any = None) -> RowLosses:
    sources = np.zeros(len(sums), dtype=np.int64) if sources is None else np.asarray(sources)
    titles = tuple(f"source {n}" for n in range(int(sources.max(initial=0)) + 1))
    terms = np.asarray(terms, dtype=np.int64)
    return RowLosses(sums=np.asarray(sums, dtype=np.float64), terms=terms, sources=sources, titles=titles)


def changed(rows: int, per_term: float, noise: float, sources: int = 1, seed: int = 0) -> tuple[RowLosses, RowLosses]:
    """Rows of 5 to 200 terms whose loss changes by `per_term`, with a spread of `noise` over the rows."""
    random = np.random.default_rng(seed)
    terms = random.integers(5, 200, rows)
    at = np.arange(rows) % sources
    before = terms * random.gamma(4, 0.5, rows)
    after = before + terms * (per_term + noise * random.standard_normal(rows))
    return losses(before, terms, at), losses(after, terms, at)


def compared(*pair: RowLosses, **options: Any) -> Comparison:
    found = compare(*pair, seed=0, **options)
    assert found is not None
    return found


@pytest.mark.parametrize(("per_term", "verdict"), [(-0.1, "better"), (0.1, "worse"), (0.0, "cannot tell")])
def test_the_verdict_says_which_way_the_loss_changed(per_term: float, verdict: str) -> None:
    before, after = changed(200, per_term, 0.2)
    found = compared(before, after)
    assert found.verdict == verdict
    assert found.difference == pytest.approx((after.sums.sum() - before.sums.sum()) / before.terms.sum())
    assert found.difference == pytest.approx(found.after - found.before)
    assert (found.rows, found.terms, found.excluded_rows) == (200, before.terms.sum(), 0)
    assert found.low is not None and found.high is not None
    assert found.low < found.difference < found.high


def test_a_difference_below_the_resolution_of_the_measurement_is_no_verdict() -> None:
    """A single step at a tiny learning rate lowers the loss of every row, by less than padding may change it."""
    for per_term, verdict in ((-4e-6, "cannot tell"), (4e-6, "cannot tell"), (-4e-5, "better"), (4e-5, "worse")):
        found = compared(*changed(100, per_term, 1e-6))
        assert found.low is not None and found.low * found.high > 0  # type: ignore[operator]
        assert found.verdict == verdict


def test_under_30_rows_the_verdict_is_cannot_tell() -> None:
    assert compared(*changed(30, -0.5, 0.1)).verdict == "better"
    found = compared(*changed(29, -0.5, 0.1))
    assert found.verdict == "cannot tell"
    assert (found.smallest_difference, found.rows_for_half) == (None, None)
    assert found.high is not None and found.high < 0, "the interval itself is reported"
    assert found.line().endswith(", cannot tell from 29 rows: at least 30 are needed)")


def test_rows_that_are_left_out_count_neither_in_the_loss_nor_in_the_rule() -> None:
    before, after = changed(40, -0.5, 0.1)
    found = compared(before, after, excluded=range(11))
    assert (found.rows, found.excluded_rows, found.verdict) == (29, 11, "cannot tell")
    assert found.difference == compared(before.without(range(11)), after.without(range(11))).difference


def test_identical_losses_cannot_tell() -> None:
    before, _ = changed(100, 0, 0.1)
    found = compared(before, before)
    assert (found.difference, found.low, found.high, found.verdict) == (0, 0, 0, "cannot tell")
    assert (found.smallest_difference, found.rows_for_half) == (None, None)


def test_the_same_change_in_every_term_is_certain() -> None:
    before, _ = changed(100, 0, 0.1)
    found = compared(before, losses(before.sums - 0.25 * before.terms, before.terms))
    assert found.verdict == "better"
    assert found.low == pytest.approx(-0.25) == found.high


@pytest.mark.parametrize("rows", [1, 2, 3, 4, 5, 6])
def test_fewer_than_five_rows_give_no_interval_and_five_a_usable_one(rows: int) -> None:
    for seed in range(5):
        found = compare(*changed(rows, -0.1, 0.1), seed=seed)
        assert found is not None and found.verdict == "cannot tell" and found.line()
        if rows < 5:
            assert found.low is None and found.high is None and "±" not in found.line()
        else:
            assert found.low is not None and found.high is not None
            assert 0 < found.high - found.low < 10  # nats; of three rows it can be millions


def test_rows_without_terms_are_not_compared() -> None:
    assert compare(losses([], []), losses([], []), seed=0) is None


def test_losses_of_different_rows_are_refused() -> None:
    before, after = changed(40, 0, 0.1)
    with pytest.raises(ValueError, match="their terms or sources differ"):
        compare(before, losses(after.sums, after.terms + 1), seed=0)


def test_the_interval_is_the_same_for_the_same_seed() -> None:
    before, after = changed(300, 0.01, 0.2, sources=3)
    assert compare(before, after, seed=1) == compare(before, after, seed=1)
    assert compare(before, after, seed=1) != compare(before, after, seed=2)


def test_each_source_has_its_own_comparison() -> None:
    before, after = changed(120, -0.5, 0.1, sources=3)
    found = compared(before, after, excluded=[0, 3, 4])
    assert list(found.by_source) == ["source 0", "source 1", "source 2"]
    assert [one.excluded_rows for one in found.by_source.values()] == [2, 1, 0]
    assert [one.rows for one in found.by_source.values()] == [38, 39, 40]
    about = found.as_json()
    assert set(about) == {
        "rows", "terms", "per_token", "before", "after", "difference", "low", "high", "verdict", "smallest_difference",
        "rows_for_half", "by_source", "excluded_rows",
    }  # fmt: skip
    assert set(about["by_source"]["source 1"]) == set(about) - {"by_source"}


def test_a_difference_between_sources_does_not_widen_the_interval() -> None:
    """The sources of a run are fixed: only rows inside a source are a sample."""
    before, after = changed(400, 0, 0.05, sources=2)
    shift = np.where(after.sources == 0, 0.5, -0.5) * after.terms
    moved = losses(after.sums + shift, after.terms, after.sources)
    apart, pooled = (
        compared(before, moved),
        compared(losses(before.sums, before.terms), losses(moved.sums, moved.terms)),
    )
    assert apart.low is not None and apart.high is not None and pooled.low is not None and pooled.high is not None
    assert apart.high - apart.low < 0.6 * (pooled.high - pooled.low)


def test_sources_with_a_single_row_still_give_an_interval() -> None:
    random = np.random.default_rng(0)
    before = losses(random.gamma(4, 1, 100), np.full(100, 10), [*range(5), *[5] * 95])
    after = losses(before.sums - random.gamma(4, 0.1, 100), before.terms, before.sources)
    found = compared(before, after)
    assert found.verdict == "better"
    assert found.low is not None


def test_the_standard_error_is_that_of_the_linearized_ratio() -> None:
    """Compared with the variance of the ratio over samples from the same population."""
    random = np.random.default_rng(0)

    def sample() -> tuple[Any, Any]:
        terms = random.integers(5, 200, 200)
        return terms * 0.3 * random.standard_normal(200), terms

    ratios = [float(d.sum() / n.sum()) for d, n in (sample() for _ in range(4000))]
    changes, terms = sample()
    found = bootstrap.interval(changes, terms, np.zeros(200, dtype=np.int64), seed=0)
    assert found.error == pytest.approx(float(np.std(ratios)), rel=0.15)


def test_the_smallest_difference_is_found_four_times_out_of_five(monkeypatch: pytest.MonkeyPatch) -> None:
    """A true change as large as the smallest difference is called better in 80 % of samples, within sampling error."""
    monkeypatch.setattr(bootstrap, "RESAMPLES", 399)
    smallest = compared(*changed(100, 0, 0.2)).smallest_difference
    assert smallest is not None
    found = [compared(*changed(100, -smallest, 0.2, seed=seed)).verdict == "better" for seed in range(1, 201)]
    assert 0.7 < np.mean(found) < 0.9


def test_rows_for_half_of_the_smallest_difference_are_enough() -> None:
    few = compared(*changed(200, 0, 0.2))
    assert few.rows_for_half is not None and few.smallest_difference is not None
    assert 600 < few.rows_for_half < 840
    more = compared(*changed(few.rows_for_half, 0, 0.2, seed=1))
    assert more.smallest_difference == pytest.approx(few.smallest_difference / 2, rel=0.15)


@pytest.mark.parametrize("sources", [1, 4])
def test_ten_thousand_rows_take_a_fifth_of_a_second(sources: int) -> None:
    pair = changed(10_000, -0.01, 0.2, sources=sources)
    spent = []
    for _ in range(3):
        began = time.process_time()
        compare(*pair, seed=0)
        spent.append(time.process_time() - began)
    assert min(spent) < 0.2 * (2 if sources > 1 else 1)  # with sources, each also has a comparison of its own


@pytest.mark.parametrize(
    ("values", "line"),
    [
        ((1.885, 1.851, -0.045, -0.023, "better"), "held-out loss 1.885 → 1.851 (−0.034 ± 0.011, better)"),
        ((1.0, 1.5, 0.4, 0.6, "worse"), "held-out loss 1.000 → 1.500 (+0.500 ± 0.100, worse)"),
        (
            (1.0, 1.00003, -0.00001, 0.00007, "cannot tell"),
            "held-out loss 1.000000 → 1.000030 (+0.000030 ± 0.000040, cannot tell)",
        ),
        ((2.0, 2.0, 0.0, 0.0, "cannot tell"), "held-out loss 2.000 → 2.000 (+0.000 ± 0.000, cannot tell)"),
    ],
)
def test_the_line_says_both_losses_the_interval_and_the_verdict(values: Any, line: str) -> None:
    before, after, low, high, verdict = values
    found = Comparison(
        rows=100, terms=1000, before=before, after=after, difference=after - before, low=low, high=high,
        verdict=verdict, smallest_difference=None, rows_for_half=None,
    )  # fmt: skip
    assert found.line() == line
