"""Curves as text: values in their places, marks that differ, any width."""

from __future__ import annotations

import pytest

from smollm3_finetune.cli.output.curve import Series, shown_curve


def marked(text: str, mark: str) -> list[tuple[int, int]]:
    """Column and row of each mark inside the axes; row 0 is the top."""
    rows = [line.partition("│")[2] for line in text.splitlines() if "│" in line]
    return sorted((column, row) for row, line in enumerate(rows) for column, c in enumerate(line) if c == mark)


def test_values_are_drawn_between_the_smallest_and_the_largest() -> None:
    text = shown_curve([Series("loss", [(0, 3.0), (5, 2.0), (10, 1.0)])], width=30, height=5)
    columns = 30 - 10
    assert marked(text, "●") == [(0, 0), (columns // 2, 2), (columns - 1, 4)]
    lines = text.splitlines()
    assert (lines[0].split()[0], lines[4].split()[0]) == ("3.000", "1.000")
    assert lines[-2].split() == ["0", "step", "10"]
    assert lines[-1].strip() == "● loss"


def test_values_of_one_column_are_averaged() -> None:
    noisy = [(step, 2.0 + (-1) ** step) for step in range(1000)]
    text = shown_curve([Series("loss", noisy), Series("ends", [(0, 1.0), (999, 3.0)])], width=40, height=9)
    assert {row for _, row in marked(text, "●")} == {4}, "the mean of 1 and 3"


def test_series_that_share_a_cell_alternate_their_marks() -> None:
    same = [(step, 1.0 + step) for step in range(20)]
    text = shown_curve([Series("a", same), Series("b", same)], width=30, height=20)
    assert len(marked(text, "●")) == len(marked(text, "○")) == 10
    assert "● a   ○ b" in text


def test_a_wide_range_is_logarithmic_and_says_so() -> None:
    text = shown_curve([Series("loss", [(0, 100.0), (1, 10.0), (2, 1.0)])], width=40, height=5)
    assert [row for _, row in marked(text, "●")] == [0, 2, 4]
    assert "(logarithmic)" in text


@pytest.mark.parametrize("width", [5, 40, 60, 80, 120])
@pytest.mark.parametrize(
    "points", [[(0, 0.0)], [(3, 2.5), (3, 2.5)], [(0, -1e9), (10**9, 1e-9)], [(1, 5e-5), (2, 7e-5)]]
)
def test_any_values_fit_any_width(width: int, points: list[tuple[int, float]]) -> None:
    text = shown_curve([Series("loss", points), Series("nothing", [])], width=width)
    assert max(map(len, text.splitlines())) <= max(width, 40)
    assert "nothing" not in text
    plain = shown_curve([Series("loss", points)], width=width, ascii_only=True)
    assert plain.isascii() and "*" in plain


def test_no_points_are_no_curve() -> None:
    assert shown_curve([Series("loss", [])], width=80) == ""
