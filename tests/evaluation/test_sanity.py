"""Answers that do not end, loop or are empty are counted."""

from __future__ import annotations

import pytest

from smollm3_finetune.evaluation.sanity import loops, shares
from smollm3_finetune.inference.decoding import Answer


@pytest.mark.parametrize(
    ("ids", "expected"),
    [
        ([1, 2, 3] * 3, True),
        ([9, 8, 1, 2, 3, 4, 1, 2, 3, 4, 1, 2, 3, 4], True),
        ([7] * 9, True),  # one token, nine times
        ([1, 2, 3] * 2, False),
        ([1, 2, 3] * 3 + [4], False),  # it got out of the loop
        ([7] * 8, False),
        (list(range(100)), False),
        ([], False),
    ],
)
def test_a_loop_is_a_phrase_three_times_at_the_end(ids: list[int], expected: bool) -> None:
    assert loops(ids) is expected


def test_shares_of_answers() -> None:
    """The token that ends an answer is not part of a loop, and is not counted."""
    answers = [
        Answer([5, 6, 7, 5, 6, 7, 5, 6, 7, 4], "a b c a b c a b c", "stop"),
        Answer([5, 6, 7, 8, 9, 10], "a b c d e f", "length"),
        Answer([4], "", "stop"),
        Answer([5, 4], "a", "stop"),
    ]
    assert shares(answers) == {"ended": 0.75, "loops": 0.25, "empty": 0.25, "mean_tokens": 4.0}
