"""Held-out rows that are also in the training rows: copies and near duplicates, but not rows of one template."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest

from smollm3_finetune.api import Conversation
from smollm3_finetune.evaluation.overlap import NEAR, Overlap, OverlapIndex, shingles, words_of

WORDS = [f"{a}{b}" for a in ("ka", "lo", "mi", "nu", "ta") for b in ("ber", "den", "fol", "gan", "hem", "jor")]


def said(question: str, answer: str, system: str = "") -> Conversation:
    messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return Conversation(messages=tuple([{"role": "system", "content": system}] * bool(system) + messages))


def found(held_out: Sequence[Conversation], training: Sequence[Conversation]) -> Overlap:
    return OverlapIndex(held_out).compare((f"rows:{i}", row) for i, row in enumerate(training))


def text(words: Sequence[str]) -> Conversation:
    return Conversation(text=" ".join(words))


def sample(rng: random.Random, count: int) -> list[str]:
    return [rng.choice(WORDS) for _ in range(count)]


def test_a_copy_is_found_in_other_case_punctuation_and_unicode_forms() -> None:
    held_out = [said("What is a café?", "A place; to drink coffee."), said("And tea?", "In a tea house.")]
    training = [said("no", "yes"), said("WHAT IS A CAFE\u0301", "a place to drink coffee!", system="Be kind.")]
    assert found(held_out, training) == Overlap(exact={0: "rows:1"})


@pytest.mark.parametrize(("replaced", "near"), [(1, True), (8, False)])
def test_a_row_with_few_other_words_is_a_near_duplicate(replaced: int, near: bool) -> None:
    words = sample(random.Random(1), 40)
    changed = [f"other{i}" if i % (40 // replaced) == 5 % (40 // replaced) else w for i, w in enumerate(words)]
    assert sum(a != b for a, b in zip(words, changed, strict=True)) == replaced
    assert found([text(words)], [text(changed)]) == Overlap(near={0: "rows:0"} if near else {})


def test_languages_without_spaces_have_near_duplicates() -> None:
    held_out = said("法国的首都是哪里?", "法国的首都是巴黎,这座城市位于塞纳河畔,人口超过两百万。")
    training = said("法国的首都是哪里?", "法国的首都是巴黎,这座城市位于塞纳河畔,人口超过三百万。")
    assert found([held_out], [training]).near == {0: "rows:0"}
    assert found([held_out], [said("今天天气怎么样?", "今天天气很好,阳光明媚,适合出去散步。")]) == Overlap()


def test_rows_of_one_template_are_not_near_duplicates() -> None:
    """A long instruction that all rows share does not make different rows alike."""
    rng = random.Random(2)
    instruction = " ".join(f"instruction{i}" for i in range(60))
    held_out = [said(f"{instruction} {' '.join(sample(rng, 8))}", "positive") for _ in range(30)]
    training = [said(f"{instruction} {' '.join(sample(rng, 8))}", "positive") for _ in range(30)]
    assert found(held_out, training) == Overlap()
    assert found(held_out, [held_out[3]]).exact == {3: "rows:0"}


def test_near_duplicates_are_those_of_a_comparison_of_all_pairs() -> None:
    rng = random.Random(3)
    held_out = [sample(rng, rng.randint(1, 30)) for _ in range(40)]
    training = [sample(rng, rng.randint(1, 30)) for _ in range(60)]
    for row in rng.sample(range(40), 20):  # with some words replaced or removed
        copy = [w for w in held_out[row] if rng.random() > 0.05]
        training.append([rng.choice(WORDS) if rng.random() < 0.05 else w for w in copy] or ["kaber"])
    held, train = [set(shingles(row)) for row in held_out], [set(shingles(row)) for row in training]
    expected = {
        i for i, a in enumerate(held) for b in train
        if len(a & b) / len(a | b) >= NEAR
    }  # fmt: skip
    result = found([text(row) for row in held_out], [text(row) for row in training])
    assert set(result.rows()) == expected
    assert len(expected) >= 10


def test_rows_without_words_are_never_alike() -> None:
    assert found([said("?!", "…")], [said("!", "…")]) == Overlap()
    assert words_of(Conversation(messages=({"role": "assistant", "content": None},))) == []


def test_tool_calls_are_compared() -> None:
    def call(city: str) -> Conversation:
        about = {"type": "function", "function": {"name": "weather", "arguments": {"city": city}}}
        return Conversation(messages=({"role": "assistant", "content": "", "tool_calls": [about]},))

    assert found([call("Paris")], [call("Paris")]).exact == {0: "rows:0"}
    assert found([call("Paris")], [call("Rome")]).exact == {}


def test_overlaps_with_several_runs_are_joined() -> None:
    one, two = Overlap(exact={1: "a:1"}, near={2: "a:2"}), Overlap(exact={2: "b:5"}, near={3: "b:6"})
    assert one.joined(two) == Overlap(exact={1: "a:1", 2: "b:5"}, near={3: "b:6"})
    assert one.joined(two).rows() == [1, 2, 3]
