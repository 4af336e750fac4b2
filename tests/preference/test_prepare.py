"""Which pairs and rows become examples, and what users are told about those that do not."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
from smollm3_preference.kto import KTO, with_other_answers
from smollm3_preference.options import KTOOptions
from smollm3_preference.pairs import pair_example

from smollm3_finetune.api import IGNORE_INDEX, Conversation
from smollm3_finetune.data.chat_template.renderer import Renderer
from smollm3_finetune.testing.small import small_source

pytestmark = pytest.mark.plugins


def user(text: str) -> Mapping[str, Any]:
    return {"role": "user", "content": text}


def answer(text: str) -> Mapping[str, Any]:
    return {"role": "assistant", "content": text}


@pytest.fixture
def renderer() -> Renderer:
    return Renderer(small_source().tokenizer())


QUESTION = (user("Hi?"),)


def pair(*, shared: Any = QUESTION, chosen: str = "Yes.", rejected: str = "No!", **more: Any) -> Conversation:
    return Conversation(messages=(*shared, answer(chosen)), rejected=(*shared, answer(rejected)), **more)


def supervised(renderer: Renderer, example: Mapping[str, Any]) -> list[str]:
    """The supervised text of each branch."""
    prefix, *branches = example["branches"]
    texts, at = [], prefix
    for length in branches:
        texts.append(renderer.tokenizer.decode([i for i in example["labels"][at : at + length] if i != IGNORE_INDEX]))
        at += length
    return texts


def test_both_answers_are_supervised_and_their_prompt_is_there_once(renderer: Renderer) -> None:
    example = pair_example(pair(), renderer, 256)
    assert example is not None
    one, other = supervised(renderer, example)
    assert "Yes." in one and "No!" in other and "Hi?" not in one + other
    assert renderer.tokenizer.decode(example["input_ids"]).count("Hi?") == 1
    assert not renderer.counts["pair with equal answers"]


@pytest.mark.parametrize("side", ["chosen", "rejected"])
def test_both_answers_follow_the_same_prompt_if_one_has_reasoning(side: str, renderer: Renderer) -> None:
    texts = {"chosen": "Yes.", "rejected": "No!"}
    example = pair_example(pair(**{**texts, side: f"<think>\nSo.\n</think>\n{texts[side]}"}), renderer, 256)
    assert example is not None and not renderer.counts
    one, other = supervised(renderer, example)
    assert ("So." in one, "So." in other) == (side == "chosen", side == "rejected")
    assert renderer.tokenizer.decode(example["input_ids"]).count("Hi?") == 1


def test_earlier_answers_that_both_share_are_not_supervised(renderer: Renderer) -> None:
    shared = (user("Hi?"), answer("Hello."), user("Well?"))
    for given in (None, (1, 3), (3,)):
        example = pair_example(pair(shared=shared, supervised=given), renderer, 256)
        assert example is not None
        assert not any("Hello." in text for text in supervised(renderer, example))


def test_answers_of_several_messages_are_supervised_after_the_shared_ones(renderer: Renderer) -> None:
    row = Conversation(
        messages=(user("Hi?"), answer("Yes."), user("And?"), answer("More.")), rejected=(user("Hi?"), answer("No!"))
    )
    example = pair_example(row, renderer, 256)
    assert example is not None
    one, other = supervised(renderer, example)
    assert "Yes." in one and "More." in one and "And?" not in one and "No!" in other


@pytest.mark.parametrize(
    ("row", "length", "note"),
    [
        (Conversation(messages=(user("Hi?"), answer("Yes."))), 256, "without a rejected answer"),
        (Conversation(text="raw text"), 256, "without a rejected answer"),
        (pair(rejected="Yes."), 256, "pair with equal answers"),
        (pair(rejected=""), 256, "pair with an empty answer"),
        (pair(chosen=""), 256, "pair with an empty answer"),
        (pair(supervised=()), 256, "pair with an empty answer"),
        (pair(shared=(user("Hi? " * 300),)), 64, "pair without an answer within data.max_length"),
        (
            pair(chosen="same " * 80 + "good", rejected="same " * 80 + "bad"), 80,
            "pair with equal answers within data.max_length",
        ),
        (
            Conversation(messages=(user("Hi?"), answer("Yes.")), rejected=(user("Well?"), answer("Yes."))), 256,
            "pair whose answers follow different prompts",
        ),
    ],
)  # fmt: skip
def test_pairs_that_cannot_be_compared_are_counted(
    row: Conversation, length: int, note: str, renderer: Renderer
) -> None:
    assert pair_example(row, renderer, length) is None
    assert renderer.counts[note] == 1


def test_a_pair_whose_longer_answer_is_cut_is_kept(renderer: Renderer) -> None:
    example = pair_example(pair(chosen="word " * 300), renderer, 80)
    assert example is not None and renderer.counts["cut"] == 1
    prefix, first, second = example["branches"]
    assert prefix + first == 80 > prefix + second


def row(*, good: bool | None, text: str = "Yes.", question: str = "Hi?") -> Conversation:
    return Conversation(messages=(user(question), answer(text)), desirable=good)


def test_kto_takes_rows_with_a_label(renderer: Renderer) -> None:
    kto = KTO(KTOOptions())
    made = [kto.prepare(row(good=good), renderer, 256) for good in (True, False)]
    assert [example and list(example["desirable"]) for example in made] == [[1], [0]]
    assert made[0] is not None and made[1] is not None and made[0]["input_ids"] == made[1]["input_ids"]
    start = made[0]["prompt"][0]
    assert set(made[0]["labels"][:start]) == {IGNORE_INDEX} and made[0]["labels"][start] != IGNORE_INDEX


@pytest.mark.parametrize(
    ("conversation", "length", "note"),
    [
        (row(good=None), 256, "without a label"),
        (row(good=True, text=""), 256, "empty answer"),
        (row(good=True, question="Hi? " * 300), 64, "answer beyond data.max_length"),
    ],
)
def test_kto_counts_rows_without_a_label_or_an_answer(
    conversation: Conversation, length: int, note: str, renderer: Renderer
) -> None:
    assert KTO(KTOOptions()).prepare(conversation, renderer, length) is None
    assert renderer.counts[note] == 1


def test_the_kl_term_of_kto_pairs_each_prompt_with_the_answer_before_it() -> None:
    rows = [
        {"input_ids": [1, 2, 3, 4], "labels": [-100, -100, 3, 4], "prompt": [2], "max_length": [5]},
        {"input_ids": [5, 6, 7, 8, 9], "labels": [-100, 6, 7, 8, 9], "prompt": [1], "max_length": [5]},
    ]
    assert with_other_answers(rows) == [
        {"input_ids": [1, 2, 6, 7, 8], "labels": [-100, -100, 6, 7, 8]},  # cut to five tokens
        {"input_ids": [5, 3, 4], "labels": [-100, 3, 4]},
    ]
