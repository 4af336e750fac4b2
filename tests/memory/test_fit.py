"""The longest rows and the largest batch that fit."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from smollm3_finetune.memory.fit import LARGEST_BATCH, SHORTEST, fit, last
from smollm3_finetune.memory.sizes import parsed_size


@dataclass(frozen=True)
class Memory:
    """A prediction of which only the upper end matters."""

    high: int


def linear(length: int, batch: int) -> Memory:
    """1,000 bytes for the weights and 2 for each token."""
    return Memory(1000 + 2 * length * batch)


SHAPES = {
    "linear": lambda n: 10 + 7 * n,
    "square": lambda n: 10 + n * n,
    "steps": lambda n: 100 * (n // 10),
    "flat": lambda n: 5,
    "bent": lambda n: 10 + n + max(0, n - 40) * 50,
}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("most", [1, 2, 3, 100, 1000])
@pytest.mark.parametrize("limit", [4, 17, 18, 50, 100, 699, 5000, 10**9])
@pytest.mark.parametrize("guess", [None, 0, 1, 13, 10**6])
def test_the_last_number_within_the_limit_is_found(shape: str, limit: int, most: int, guess: int | None) -> None:
    asked: list[int] = []

    def value(n: int) -> int:
        asked.append(n)
        return SHAPES[shape](n)

    fitting = [n for n in range(1, most + 1) if SHAPES[shape](n) <= limit]
    assert last(value, limit, most, guess) == (fitting[-1] if fitting else None)
    assert max(asked) <= most, "a number out of range is not asked for"
    assert len(asked) == len(set(asked)) <= 25


def test_few_values_are_needed_if_they_are_linear() -> None:
    asked: list[int] = []

    def value(n: int) -> int:
        asked.append(n)
        return 1000 + 13 * n

    assert last(value, 1000 + 13 * 1234, 4096) == 1234
    assert len(asked) <= 4


def test_the_answers_are_the_largest_that_fit() -> None:
    found = fit(linear, 1000 + 2 * 5000, length=512, batch=2, context=4096)
    assert (found.longest, found.largest) == (2496, 9)  # 2 × 2,496 and 9 × 512 tokens of 5,000
    assert dict(found.table) == {256: 19, 512: 9, 1024: 4, 4096: 1}
    assert found.fits and not found.nothing_fits


def test_the_context_of_the_model_is_the_limit() -> None:
    found = fit(linear, 10**9, length=512, batch=1, context=2000)
    assert found.longest == 1984
    assert [length for length, _ in found.table] == [256, 512, 1024]
    assert found.largest == LARGEST_BATCH


def test_nothing_fits() -> None:
    found = fit(linear, 1000, length=512, batch=1, context=4096)
    assert found.nothing_fits and not found.fits
    assert (found.longest, found.largest, found.table) == (None, None, ())


def test_only_the_shortest_rows_fit() -> None:
    found = fit(linear, 1000 + 2 * SHORTEST, length=512, batch=1, context=4096)
    assert (found.longest, found.largest) == (SHORTEST, None)


def test_each_prediction_is_made_once() -> None:
    asked: list[tuple[int, int]] = []

    def predict(length: int, batch: int) -> Memory:
        asked.append((length, batch))
        return linear(length, batch)

    fit(predict, 20_000, length=512, batch=2, context=4096)
    assert len(asked) == len(set(asked))
    assert len(asked) < 20


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("24GB", 24 * 10**9),
        ("24 gb", 24 * 10**9),
        ("1.5G", 15 * 10**8),
        ("80GiB", 80 * 2**30),
        ("8000000000", 8 * 10**9),
    ],
)
def test_sizes(text: str, size: int) -> None:
    assert parsed_size(text, "--fit") == size


@pytest.mark.parametrize("text", ["24", "much", "24XB", "-1GB", "0GB", "", "nanGB"])
def test_other_texts_are_refused_with_an_example(text: str) -> None:
    from smollm3_finetune.errors import ConfigError

    with pytest.raises(ConfigError, match="--fit") as raised:
        parsed_size(text, "--fit")
    assert "--fit 24" in str(raised.value.hint)
