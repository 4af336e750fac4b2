"""Axes, thinning, means and the comparison of words."""

from __future__ import annotations

import random

import pytest

from smollm3_finetune.report.charts import Curve, chart
from smollm3_finetune.report.scales import Axis, shown, steps_axis, value_axis
from smollm3_finetune.report.thinning import smoothed, thinned
from smollm3_finetune.report.word_diff import word_diff


@pytest.mark.parametrize(
    ("values", "ticks"),
    [
        ([0.36, 4.34], ["0", "1", "2", "3", "4", "5"]),
        ([2e-4, 2e-5], ["0", "5.0e−5", "1.0e−4", "1.5e−4", "2.0e−4"]),
        ([1884, 2883], ["1,750", "2,000", "2,250", "2,500", "2,750", "3,000"]),
        ([0.5669], ["0.50", "0.55", "0.60", "0.65"]),
        ([-0.02, 0.031], ["−0.02", "0.00", "0.02", "0.04"]),
    ],
)  # fmt: skip
def test_ticks_are_round_numbers_around_all_values(values: list[float], ticks: list[str]) -> None:
    axis = value_axis(values)
    assert [text for _, text in axis.ticks] == ticks
    assert all(0 <= axis.at(v) <= 1 for v in values)


@pytest.mark.parametrize("seed", range(3))
def test_axes_hold_values_of_any_size(seed: int) -> None:
    chosen = random.Random(seed)
    for _ in range(300):
        values = [chosen.choice((-1, 1)) * 10 ** chosen.uniform(-30, 30) for _ in range(chosen.randint(1, 4))]
        for axis in (value_axis(values), value_axis(values, from_zero=True), value_axis(values, may_be_log=True)):
            assert 2 <= len(axis.ticks) <= 9, values
            assert all(-1e-9 <= axis.at(v) <= 1 + 1e-9 for v in values), values


def test_a_wide_range_of_positive_values_gets_a_logarithmic_axis() -> None:
    axis = value_axis([0.01, 300.0], may_be_log=True)
    assert axis.log and [text for _, text in axis.ticks] == ["0.01", "0.1", "1", "10", "100", "1,000"]
    assert axis.at(3.1622776601683795) == pytest.approx(0.5)
    assert not value_axis([0.0, 300.0], may_be_log=True).log


def test_above_the_largest_value_there_is_room() -> None:
    axis = value_axis([0.0, 1500.0], from_zero=True)
    assert axis.ticks[-1] == (1500.0, "1,500") and 0.8 < axis.at(1500.0) < 0.95


def test_a_letter_at_the_upper_edge_is_below_its_curve() -> None:
    curves = [Curve("high", [(s, 5.99) for s in range(9)], "run0", letter="A"),
              Curve("low", [(s, 0.5) for s in range(9)], "run1", letter="B")]  # fmt: skip
    drawn, noisy = chart("x", "X", "", curves, 8), chart("x", "X", "", curves, 8, noisy=True)
    assert drawn is not None and noisy is not None
    lines = [float(one.path.split()[1].split("h")[0]) for one in drawn.curves]
    on = [one.letters[0][1] for one in drawn.curves]
    assert lines[0] < 10 < on[0] and on[1] < lines[1]
    assert [len(one.letters) for one in (*drawn.curves, *noisy.curves)] == [2, 2, 1, 1]


def test_steps_are_whole_numbers() -> None:
    assert [text for _, text in steps_axis(3).ticks] == ["0", "1", "2", "3"]
    assert steps_axis(0) == Axis(0, 1, ((0, "0"), (1, "1")))
    assert [text for _, text in steps_axis(100_000).ticks][-1] == "100,000"


def test_thinning_keeps_extremes_gaps_and_both_ends() -> None:
    values = [(i, random.Random(i).random()) for i in range(5000)]
    points: list[tuple[int, float | None]] = [*values]
    points[1234], points[4321] = (1234, 9.0), (4321, -9.0)
    for i in range(2000, 2100):
        points[i] = (i, None)
    few = thinned(points, buckets=50)
    assert len(few) <= 200 and few == sorted(few, key=lambda p: p[0])
    assert {(1234, 9.0), (4321, -9.0), points[0], points[-1]} <= set(few)
    assert [v for s, v in few if 2000 <= s < 2100] == [None], "a bucket without a value is a gap"
    assert thinned(points[:200], buckets=50) == points[:200]


def test_the_mean_over_neighbors_of_a_line_is_the_line() -> None:
    line = [(i, 3.0 - 0.5 * i) for i in range(100)]
    assert smoothed(line) == [(i, pytest.approx(v)) for i, v in line], "as many before as after: no shift, no bend"
    flat = smoothed([(i, float(i % 2)) for i in range(100)])
    assert all(0.35 < v < 0.65 for _, v in flat[10:-10] if v is not None)


def test_words_that_differ() -> None:
    found = word_diff("A leaf is blue. Bye.", "A leaf is green, see? Bye.")
    assert found.before == [(False, "A leaf is "), (True, "blue. "), (False, "Bye.")]
    assert found.after == [(False, "A leaf is "), (True, "green, see? "), (False, "Bye.")]
    assert word_diff("one\n two", "one two").equal, "space is not compared"
    assert not word_diff("a", "").equal and word_diff("", "").equal


def test_numbers_as_text() -> None:
    texts = [shown(v) for v in (0.35613, 2e-5, 2883.4, -0.5, 1e9, 0.0, 120.0)]
    assert texts == ["0.3561", "2.00e−5", "2,883", "−0.5", "1.00e9", "0", "120"]
