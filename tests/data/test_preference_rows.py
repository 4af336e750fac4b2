"""Preference rows in the shapes of public datasets and of other tools, and the reasons why a row is not a pair."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from smollm3_finetune.api import Conversation, ObjectiveSpec
from smollm3_finetune.builtin.formatters import claims
from smollm3_finetune.builtin.formatters.preference import PreferenceFormatter
from smollm3_finetune.builtin.formatters.scores import number
from smollm3_finetune.builtin.options import PreferenceOptions
from smollm3_finetune.components.discovery import PluginSelection, discover
from smollm3_finetune.components.kinds import FORMATTER
from smollm3_finetune.components.registry import Registry
from smollm3_finetune.data.split import position


def says(role: str, content: Any, **more: Any) -> dict[str, Any]:
    return {"role": role, "content": content, **more}


def u(content: str = "q") -> dict[str, Any]:
    return says("user", content)


def a(content: str, **more: Any) -> dict[str, Any]:
    return says("assistant", content, **more)


SCHEMA = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}
CALL = {"type": "function", "function": {"name": "f", "arguments": {}}}
PAIR = Conversation(messages=(u(), a("good")), rejected=(u(), a("bad")))
HH = "\n\nHuman: q\n\nAssistant: {}"


def pair(row: dict[str, Any]) -> Conversation:
    return PreferenceFormatter(PreferenceOptions())(row)


def lacking(row: dict[str, Any]) -> str:
    """The reason why a row has no rejected answer."""
    found = pair(row)
    assert found.rejected is None
    return found.lacks["rejected"]


@pytest.fixture(scope="module")
def registry() -> Registry:
    return discover(PluginSelection.of([], no_plugins=True))


SHAPES: dict[str, dict[str, Any]] = {
    "TRL, text": {"prompt": "q", "chosen": "good", "rejected": "bad"},
    "TRL, messages": {"prompt": [u()], "chosen": [a("good")], "rejected": [a("bad")]},
    "TRL, implicit prompt": {"chosen": [u(), a("good")], "rejected": [u(), a("bad")]},
    "ultrafeedback_binarized": {
        "prompt": "q", "prompt_id": "0f", "chosen": [u(), a("good")], "rejected": [u(), a("bad")],
        "messages": [u(), a("good")], "score_chosen": 8.0, "score_rejected": 5.0,
    },
    "argilla, cleaned": {
        "source": "s", "prompt": "q", "chosen": [u(), a("good")], "chosen-rating": 5.0, "chosen-model": "m",
        "rejected": [u(), a("bad")], "rejected-rating": 3.75, "rejected-model": "n",
    },
    "argilla, responses": {
        "instruction": "q", "chosen_response": "good", "rejected_response": "bad", "chosen_avg_rating": 5.0,
        "rejected_avg_rating": 3.5,
    },
    "dpo-mix-7k": {
        "dataset": "d", "chosen": [u(), a("good")], "chosen_rating": 5.0, "rejected": [u(), a("bad")],
        "rejected_rating": 2.0,
    },
    "orca_dpo_pairs": {"system": "", "question": "q", "chosen": "good", "rejected": "bad"},
    "ranks of a pair": {
        "prompt": "q", "chosen": "good", "chosen_rank": 1, "rejected": "bad", "rejected_rank": "3",
    },
    "stack-exchange-paired": {"question": "q", "response_j": "good", "response_k": "bad", "metadata": ["x"]},
    "OpenHermesPreferences": {
        "prompt": "q", "candidates_completions": ["bad", "good"], "ranks": [2, 1], "chosen": [u(), a("good")],
        "rejected": [u(), a("bad")],
    },
    "OpenAI": {
        "input": {"messages": [u()], "tools": [], "parallel_tool_calls": None},
        "preferred_output": [a("good")], "non_preferred_output": [a("bad")],
    },
    "LLaMA-Factory": {
        "conversations": [{"from": "human", "value": "q"}], "chosen": {"from": "gpt", "value": "good"},
        "rejected": {"from": "gpt", "value": "bad"},
    },
    "LLaMA-Factory, alpaca": {"instruction": "q", "input": "", "chosen": "good", "rejected": "bad"},
    "ms-swift": {"messages": [u(), a("good")], "rejected_response": "bad"},
    "ms-swift, messages": {"messages": [u(), a("good")], "rejected_messages": [u(), a("bad")]},
    "messages and texts": {"messages": [u(), a("good")], "chosen": "good", "rejected": "bad"},
    "hh-rlhf": {"chosen": HH.format("good"), "rejected": HH.format("bad")},
    "full-hh-rlhf": {"prompt": HH.format(""), "chosen": "good", "rejected": "bad"},
    "UltraFeedback": {
        "source": "evol", "instruction": "q", "models": ["m", "n", "o"],
        "completions": [
            {"model": "m", "response": "middle", "overall_score": 5.0, "critique": "c"},
            {"model": "n", "response": "good", "overall_score": 8.5, "critique": "c"},
            {"model": "o", "response": "bad", "overall_score": 1.0, "critique": "c"},
        ],
    },
    "Nectar": {
        "prompt": HH.format(""), "turns": 1, "num_responses": 3,
        "answers": [{"answer": t, "model": "m", "rank": r} for t, r in (("good", 1.0), ("x", 2.0), ("bad", 7.0))],
    },
    "NeMo RL": {
        "context": [u()],
        "completions": [{"rank": 1, "completion": [a("bad")]}, {"rank": 0, "completion": [a("good")]}],
    },
    "distilabel": {"instruction": "q", "generations": ["bad", "good", "unrated"], "ratings": ["1", "5", "N/A"]},
    "responses and scores": {"prompt": "q", "responses": ["bad", "good"], "scores": [-1.5, 2.0]},
    "messages and scored responses": {"messages": [u()], "responses": [a("bad"), a("good")], "rewards": [0, 1]},
    "responses and ranks": {"prompt": "q", "responses": '["bad", "good"]', "ranks": "[2, 1]"},
}  # fmt: skip


@pytest.mark.parametrize("name", SHAPES)
def test_each_shape_is_recognized_and_gives_the_pair(name: str, registry: Registry) -> None:
    row = SHAPES[name]
    assert [o.spec.name for o in registry.claiming(FORMATTER, row)] == ["preference"]
    found = pair(row)
    assert found == PAIR and not found.lacks


@pytest.mark.parametrize(
    ("row", "why"),
    [
        ({"prompt": "q", "chosen": "same", "rejected": "same"}, "the answers are equal"),
        ({"prompt": "q", "chosen": "good", "rejected": " "}, "an answer is empty"),
        ({"prompt": "q", "chosen": "", "rejected": "bad"}, "an answer is empty"),
        ({"chosen": [u("q"), a("x")], "rejected": [u("other"), a("x")]}, "the answers share no prompt"),
        ({"chosen": [a("x")], "rejected": [a("y")]}, "the answers share no prompt"),
        ({"chosen": [says("system", "s"), u("q"), a("x")], "rejected": [says("system", "s"), u("v"), a("x")]},
         "the answers share no prompt"),
        ({"prompt": "p", "chosen": [u("q"), a("x")], "rejected": [u("q"), a("y")]},
         "the answers do not begin with the prompt"),
        ({"prompt": "q", "chosen": "x", "rejected": "y", "chosen_score": 3, "rejected_score": 3.0},
         "chosen_score equals rejected_score"),
        ({"prompt": "q", "chosen": "x", "rejected": "y", "chosen_rank": 4, "rejected_rank": 2},
         "chosen_rank and rejected_rank favor the rejected answer"),
        ({"prompt": "q", "chosen": "x", "rejected": "y", "score_chosen": 1, "score_rejected": 2},
         "score_chosen and score_rejected favor the rejected answer"),
        ({"prompt": "q", "responses": ["x", "y"], "scores": [2, 2]}, "the scores of responses are equal"),
        ({"prompt": "q", "responses": ["x", "y"], "scores": [2, None]}, "only one answer in responses has a score"),
        ({"prompt": "q", "responses": ["x", "x"], "scores": [2, 1]}, "the answers are equal"),
        ({"prompt": "q", "responses": ["x", "y"], "scores": ["high", None]}, "no answer in responses has a score"),
        ({"prompt": "q", "responses": ["x"], "scores": [1]}, "only one answer in responses has a score"),
        ({"instruction": "q", "completions": []}, "no answer in completions has a score"),
        ({"instruction": "q", "completions": [{"response": "x", "overall_score": 2}]},
         "only one answer in completions has a score"),
        ({"chosen": HH.format("x"), "rejected": "\n\nHuman: q\n\nHuman: v\n\nAssistant: y"},
         "the transcript does not alternate between Human and Assistant"),
    ],
)  # fmt: skip
def test_a_row_that_is_not_a_pair_has_a_reason(row: dict[str, Any], why: str) -> None:
    assert lacking(row) == why


def test_the_better_answer_of_such_a_row_is_still_there() -> None:
    same = pair({"prompt": "q", "chosen": "same", "rejected": "same"})
    assert (same.messages, same.supervised) == ((u(), a("same")), None)
    assert pair({"prompt": "q", "chosen": "", "rejected": "bad"}).supervised == ()
    unscored = pair({"prompt": "q", "responses": ["x", "y"], "scores": [None, None]})
    assert (unscored.messages, unscored.supervised) == ((u(),), ())
    best = pair({"prompt": "q", "responses": ["x", "y"], "scores": [None, 1]})
    assert (best.messages, best.supervised) == ((u(), a("y")), None)
    assert position(same, 0) == position(Conversation(messages=same.messages), 0)  # a reason moves no row


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"chosen": "x", "rejected": "y"}, "'chosen' is text, so the question must be in 'prompt', which is missing"),
        ({"messages": [u()], "rejected_response": "y"},
         "messages[0]: the last message of 'messages' must be from the assistant"),
        ({"prompt": "q", "completions": [{"response": 3, "score": 1}, {"response": "y", "score": 2}]},
         "'completions[0]' must be text or a list of messages, found a number"),
        ({"prompt": "q", "chosen": "x", "rejected": [u("y")]},
         "rejected[0]: the last message of 'rejected' must be from the assistant"),
    ],
)  # fmt: skip
def test_a_row_of_another_kind_is_an_error(row: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as caught:
        pair(row)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("row", "name"),
    [
        ({"instruction": "q", "output": "o", "generations": ["x", "y"], "ratings": [1, 2]}, "alpaca"),
        ({"prompt": "q", "completion": "c", "responses": ["x", "y"], "scores": [1, 2]}, "prompt-completion"),
        ({"messages": [u(), a("x")], "answers": ["x", "y"], "scores": [1, 2]}, "messages"),
        ({"messages": [u(), a("x")], "label": False}, "messages"),
        ({"prompt": "q", "completion": "c", "label": True}, "prompt-completion"),
    ],
)
def test_rows_with_an_answer_of_their_own_are_not_pairs(row: dict[str, Any], name: str, registry: Registry) -> None:
    assert [o.spec.name for o in registry.claiming(FORMATTER, row)] == [name]
    assert claims.preference(row) is False


def test_tools_calls_and_reasoning_are_kept_on_both_sides() -> None:
    calling = [says("assistant", "", tool_calls=[CALL]), says("tool", "1"), a("one", reasoning_content="r")]
    row = {"prompt": [u()], "chosen": calling, "rejected": [a("two", thinking="s")], "tools": [SCHEMA], "system": "s"}
    found = pair(row)
    begin = (says("system", "s"), u())
    assert found.tools == (SCHEMA,)
    assert found.messages == (*begin, *calling)
    assert found.rejected == (*begin, a("two", reasoning_content="s"))
    assert found.supervised is None
    openai = {"input": {"messages": [u()], "tools": [SCHEMA]}, "preferred_output": calling,
              "non_preferred_output": [a("two")]}  # fmt: skip
    assert pair(openai).tools == (SCHEMA,)


def test_only_the_messages_after_the_shared_ones_are_supervised_on_both_sides() -> None:
    shared = [u("1"), a("one"), u("2")]
    found = pair({"prompt": "2", "chosen": [*shared, a("good")], "rejected": [*shared, a("bad"), u("3"), a("worse")]})
    assert found.supervised == (3,)
    other = found.rejected_conversation()
    assert (other.messages, other.rejected, other.supervised) == (found.rejected, found.messages, (3, 5))
    everything = replace(found, supervised=None)  # of another formatter
    assert everything.rejected_conversation().supervised == (1, 3, 5)
    assert pair({"messages": [*shared, a("good")], "rejected_response": "bad"}).rejected == (*shared, a("bad"))


def test_a_transcript_has_all_its_turns() -> None:
    begin = "\n\nHuman: one\n\ntwo \n\nAssistant: Assistant: yes\n\nHuman: more\n\nAssistant:"
    found = pair({"chosen": f"{begin} good\n\nlines", "rejected": f"{begin} bad"})
    assert found.messages == (u("one\n\ntwo"), a("Assistant: yes"), u("more"), a("good\n\nlines"))
    assert found.supervised == (3,)
    about = {"prompt": "Human: is a word, and\n\nAssistant: too", "chosen": "x", "rejected": "y"}
    assert pair(about).messages[0]["content"] == about["prompt"]  # it ends with words, not with an empty turn


def test_what_is_not_read_of_the_answers_is_named() -> None:
    row = {**SHAPES["UltraFeedback"], "tools": None}
    assert pair(row).unread == ("completions[].critique", "completions[].model")
    masked = {"prompt": "q", "chosen": "x", "rejected": [a("y", weight=0)]}
    assert pair(masked).unread == ("rejected[].weight",)


@pytest.mark.parametrize(
    ("value", "expected"),
    [(1, 1.0), ("2.5", 2.5), (" 3 ", 3.0), (True, None), ("N/A", None), (None, None), ("inf", None), ("nan", None)],
)
def test_a_score_is_a_finite_number(value: Any, expected: float | None) -> None:
    assert number(value) == expected


def test_a_label_that_is_needed_is_also_used() -> None:
    def spec(**more: Any) -> ObjectiveSpec:
        return ObjectiveSpec(name="x", summary="x", factory="x:X", api=2, **more)

    assert spec(fields=["desirable"]).uses_labels is True
    assert (spec(fields=("rejected",)).uses_labels, spec(fields=("rejected",)).fields) == (False, ("rejected",))
    for wrong in ("rejected", ("chosen",), 3):
        with pytest.raises(TypeError, match="fields must be a tuple of 'rejected' and 'desirable'"):
            spec(fields=wrong)
