"""Each bundled formatter, from a row in a file to tokens and mask as in a run, compared with handwritten tokens.

Expectations have two notations. In both, ⟦…⟧ marks supervised tokens. `spelled` lists the tokens as in the embedded
tokenizer's vocabulary (Ġ is a space, Ċ a line break, other letters may be bytes), so that no tokenizer can hide a
fault. `written` is text whose pieces are tokenized separately.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerFast

import smollm3_finetune
from smollm3_finetune.api.data import IGNORE_INDEX
from smollm3_finetune.components.discovery import PluginSelection, discover
from smollm3_finetune.components.kinds import FORMATTER, OBJECTIVE
from smollm3_finetune.components.registry import Registry
from smollm3_finetune.components.selection import choose
from smollm3_finetune.data.chat_template.renderer import Renderer, RenderOptions
from smollm3_finetune.data.rows import with_formatter
from smollm3_finetune.data.sources import find_sources
from smollm3_finetune.errors import DataError

TINY = Path(smollm3_finetune.__file__).parent / "builtin" / "tiny"
TOOLS = Path(__file__).parent / "templates" / "smollm3_like_tools.jinja"
LONG = 1 << 20

Row = dict[str, Any]
Tokens = list[tuple[str, bool]]
"""Each token, and whether it is supervised."""
Supervise = Callable[..., Tokens | None]


@cache
def tokenizer() -> PreTrainedTokenizerFast:
    return AutoTokenizer.from_pretrained(str(TINY))


@pytest.fixture(scope="module")
def registry() -> Registry:
    return discover(PluginSelection.of([], no_plugins=True))


def write_rows(*rows: Row, name: str = "rows.jsonl") -> str:
    Path(name).write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows), encoding="utf-8")
    return name


@pytest.fixture
def supervised(registry: Registry) -> Supervise:
    """One row through file, formatter, objective `sft` and renderer; None if no token is supervised.

    Without `options`, the formatter is detected from the row and must be the given one.
    """

    def through(
        name: str, row: Row, *, file: str | None = None, max_length: int = LONG, options: Row | None = None,
        template: Path | None = None, **render: Any,
    ) -> Tokens | None:  # fmt: skip
        named = None if options is None else choose(registry, FORMATTER, name, options)
        source = with_formatter(registry, find_sources(file or write_rows(row))[0], named, None)
        assert source.formatter.component.spec.name == name
        ((_, conversation),) = source.conversations()
        text = None if template is None else template.read_text(encoding="utf-8")
        renderer = Renderer(tokenizer(), RenderOptions(template=text, **render))
        example = choose(registry, OBJECTIVE, "sft", {}).create().prepare(conversation, renderer, max_length)
        return None if example is None else shown(example)

    return through


def shown(example: Any) -> Tokens:
    ids, labels = example["input_ids"], example["labels"]
    assert len(ids) == len(labels)
    assert all(label in (IGNORE_INDEX, i) for i, label in zip(ids, labels, strict=True))
    names = tokenizer().convert_ids_to_tokens(ids)
    return [(name, label != IGNORE_INDEX) for name, label in zip(names, labels, strict=True)]


def spelled(tokens: str) -> Tokens:
    """Tokens separated by white space, which no token contains."""
    found: Tokens = []
    supervised = False
    for token in tokens.split():
        if token in "⟦⟧":
            supervised = token == "⟦"
        else:
            found.append((token, supervised))
    return found


def written(text: str) -> Tokens:
    found: Tokens = []
    for i, piece in enumerate(text.replace("⟧", "⟦").split("⟦")):
        found += [(token, bool(i % 2)) for token in tokenizer().tokenize(piece)]
    return found


# ------------------------------------------------------------------ one question and its answer, in every formatter

CHATS: dict[str, Callable[[str, str], Row]] = {
    "messages": lambda q, a: {"messages": [{"role": "user", "content": q}, {"role": "assistant", "content": a}]},
    "prompt-completion": lambda q, a: {"prompt": q, "completion": a},
    "alpaca": lambda q, a: {"instruction": q, "input": "", "output": a},
    "sharegpt": lambda q, a: {"conversations": [{"from": "human", "value": q}, {"from": "gpt", "value": a}]},
    "preference": lambda q, a: {"prompt": q, "chosen": a, "rejected": "No."},
}
"""A row of each formatter with a question and an answer. Raw text has no turns, and separate tests."""
NO_THINK = "<|im_start|> system Ċ ## ĠMetadata Ċ Ċ Reasoning ĠMode : Ġ/ no _ think Ċ <|im_end|> Ċ "
THINK = "<|im_start|> system Ċ ## ĠMetadata Ċ Ċ Reasoning ĠMode : Ġ/ think Ċ <|im_end|> Ċ "
HI = "<|im_start|> user Ċ Hi <|im_end|> Ċ "
HEADER = "<|im_start|> assistant Ċ "
FORCED = "<|im_start|> assistant Ċ <think> Ċ Ċ </think> Ċ "
HEAD = 31
"""Tokens of NO_THINK, HI and FORCED."""
TRACED = "<think>\nhm\n</think>\nHello!"
THINKING = {"enable_thinking": True}
NOT_THINKING = {"enable_thinking": False}
INSTRUCTED = (
    "<|im_start|> system Ċ ## ĠMetadata Ċ Ċ Reasoning ĠMode : Ġ/ no _ think Ċ Ċ ## ĠCustom ĠInstructions Ċ Ċ "
    "Be Ġkind . Ċ <|im_end|> Ċ "
)

ANSWERED: dict[str, tuple[str, str, Row, str]] = {
    "plain": ("Hi", "Hello!", {}, NO_THINK + HI + FORCED + "⟦ Hello ! <|im_end|> ⟧ Ċ"),
    "combining accent, CJK, emoji joined with ZWJ, right to left": (
        "e\u0301 日",
        "👩\u200d👧 ש",
        {},
        NO_THINK + "<|im_start|> user Ċ e Ì ģ Ġ æ Ĺ ¥ <|im_end|> Ċ " + FORCED
        + "⟦ ð Ł ĳ © â Ģ į ð Ł ĳ § Ġ × © <|im_end|> ⟧ Ċ",
    ),
    "white space is kept": (
        " Hi ", " Hello! \n", {},
        NO_THINK + "<|im_start|> user Ċ ĠH i Ġ <|im_end|> Ċ " + FORCED + "⟦ ĠHello ! ĠĊ <|im_end|> ⟧ Ċ",
    ),
    "a line break first": ("Hi", "\n\nHi", {}, NO_THINK + HI + FORCED + "⟦ Ċ Ċ Hi <|im_end|> ⟧ Ċ"),
    "a reasoning trace": (
        "Hi", TRACED, {}, THINK + HI + HEADER + "⟦ <think> Ċ hm Ċ </think> Ċ Hello ! <|im_end|> ⟧ Ċ",
    ),
    "a trace where the row says no": ("Hi", TRACED, NOT_THINKING, NO_THINK + HI + FORCED + "⟦ Hello ! <|im_end|> ⟧ Ċ"),
    "no trace where the row says yes": ("Hi", "Hello!", THINKING, THINK + HI + HEADER + "⟦ Hello ! <|im_end|> ⟧ Ċ"),
    "tags that are only mentioned": (
        "Hi", "Hi <think> Hi", {}, NO_THINK + HI + FORCED + "⟦ Hi Ġ <think> ĠH i <|im_end|> ⟧ Ċ",
    ),
    "instructions of the row's own": (
        "Hi", "Hello!", {"custom_instructions": "Be kind."}, INSTRUCTED + HI + FORCED + "⟦ Hello ! <|im_end|> ⟧ Ċ",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CHATS)
@pytest.mark.parametrize("case", ANSWERED)
def test_a_question_and_its_answer_are_these_tokens(name: str, case: str, supervised: Supervise) -> None:
    question, answer, kwargs, expected = ANSWERED[case]
    row = CHATS[name](question, answer)
    assert supervised(name, {**row, "chat_template_kwargs": kwargs} if kwargs else row) == spelled(expected)


@pytest.mark.parametrize("name", CHATS)
def test_a_system_column_works_in_every_formatter(name: str, supervised: Supervise) -> None:
    row = {**CHATS[name]("Hi", "Hello!"), "system": "Be kind."}
    assert supervised(name, row) == spelled(INSTRUCTED + HI + FORCED + "⟦ Hello ! <|im_end|> ⟧ Ċ")


@pytest.mark.parametrize("name", CHATS)
def test_rows_without_a_mode_use_the_mode_of_the_run(name: str, supervised: Supervise) -> None:
    stripped = spelled(NO_THINK + HI + FORCED + "⟦ Hello ! <|im_end|> ⟧ Ċ")
    assert supervised(name, CHATS[name]("Hi", TRACED), enable_thinking=False) == stripped
    asked = spelled(THINK + HI + HEADER + "⟦ Hello ! <|im_end|> ⟧ Ċ")
    assert supervised(name, CHATS[name]("Hi", "Hello!"), enable_thinking=True) == asked
    row = {**CHATS[name]("Hi", TRACED), "chat_template_kwargs": NOT_THINKING}
    assert supervised(name, row, enable_thinking=True) == stripped


@pytest.mark.parametrize("name", CHATS)
def test_a_very_long_answer_is_cut_to_the_token(name: str, supervised: Supervise) -> None:
    digits = "1234567890" * 2000  # a token each
    row = CHATS[name]("Hi", digits)
    before = spelled(NO_THINK + HI + FORCED)
    assert len(before) == HEAD
    whole = [*before, *((digit, True) for digit in digits), ("<|im_end|>", True), ("Ċ", False)]
    for max_length in (LONG, HEAD + 20_002, HEAD + 20_001, HEAD + 20_000, HEAD + 12, HEAD + 1):
        assert supervised(name, row, max_length=max_length) == whole[:max_length]
    assert supervised(name, row, max_length=HEAD) is None, "cut before the first learned token"


@pytest.mark.parametrize("name", CHATS)
def test_a_very_long_question_leaves_no_supervised_token(name: str, supervised: Supervise) -> None:
    row = CHATS[name]("8" * 5000, "Hello!")
    before = HEAD - 1 + 5000
    assert supervised(name, row, max_length=before) is None
    found = supervised(name, row, max_length=before + 1)
    assert found is not None
    assert found[19:22] == [("Ċ", False), ("8", False), ("8", False)]
    assert found[-9:] == spelled(FORCED + "⟦ Hello ⟧")


# ------------------------------------------------------------------------------------------------- turns and tools

PLAIN = "<|im_start|>system\n## Metadata\n\nReasoning Mode: /no_think\n<|im_end|>\n"
KIND = PLAIN.removesuffix("<|im_end|>\n") + "\n## Custom Instructions\n\nBe kind.\n<|im_end|>\n"
REASONS = "<|im_start|>system\n## Metadata\n\nReasoning Mode: /think\n<|im_end|>\n"
ASK = "<|im_start|>assistant\n<think>\n\n</think>\n"
ASK_THINKING = "<|im_start|>assistant\n"
Q1 = "<|im_start|>user\nHi<|im_end|>\n"
Q2 = "<|im_start|>user\nAnd?<|im_end|>\n"
TWO_TURNS = PLAIN + Q1 + ASK + "⟦One.<|im_end|>⟧\n" + Q2 + ASK + "⟦Two.<|im_end|>⟧\n"
LAST_OF_TWO = PLAIN + Q1 + ASK + "One.<|im_end|>\n" + Q2 + ASK + "⟦Two.<|im_end|>⟧\n"
ADD = {"type": "function", "function": {"name": "add", "description": "Adds.", "parameters": {"type": "object"}}}
ADD_SHOWN = (
    '{"type": "function", "function": {"name": "add", "description": "Adds.", "parameters": {"type": "object"}}}\n'
)
TOOLED = (
    "<|im_start|>system\nDate: 01 January 2026\nMode: /no_think\nXML tools:\n" + ADD_SHOWN + "<|im_end|>\n"
    "<|im_start|>user\n1+2?<|im_end|>\n"
    + ASK + '⟦<tool_call>{"name": "add", "arguments": {"a": 1, "b": "é"}}</tool_call><|im_end|>⟧\n'
    "<|im_start|>tool\n3<|im_end|>\n"
    + ASK + "⟦It is 3.<|im_end|>⟧\n"
)  # fmt: skip
CALL = {"name": "add", "arguments": {"a": 1, "b": "é"}}
PARTS = [{"type": "text", "text": "H"}, {"type": "text", "value": "i", "text": None}]


def user(content: Any, **more: Any) -> Row:
    return {"role": "user", "content": content, **more}


def assistant(content: Any, **more: Any) -> Row:
    return {"role": "assistant", "content": content, **more}


def says(speaker: str, value: Any, **more: Any) -> Row:
    return {"from": speaker, "value": value, **more}


def chat(*messages: Row, **columns: Any) -> Row:
    return {"messages": list(messages), **columns}


def share(*turns: Row, **columns: Any) -> Row:
    return {"conversations": list(turns), **columns}


MESSAGES: dict[str, tuple[Row, str]] = {
    "turns": (chat(user("Hi"), assistant("One."), user("And?"), assistant("Two.")), TWO_TURNS),
    "a system message": (
        chat({"role": "system", "content": "Be kind."}, user("Hi"), assistant("One.")),
        KIND + Q1 + ASK + "⟦One.<|im_end|>⟧\n",
    ),
    "a flag in the system message": (
        chat({"role": "developer", "content": "/think"}, user("Hi"), assistant("One.")),
        REASONS + Q1 + ASK_THINKING + "⟦One.<|im_end|>⟧\n",
    ),
    "typed parts": (
        chat(user(PARTS), assistant([{"type": "text", "text": "e"}, {"type": "text", "text": "\u0301!"}])),
        PLAIN + Q1 + ASK + "⟦e\u0301!<|im_end|>⟧\n",
    ),
    "an empty answer": (
        chat(user("Hi"), assistant(""), user("And?"), assistant("Two.")),
        PLAIN + Q1 + ASK + "<|im_end|>\n" + Q2 + ASK + "⟦Two.<|im_end|>⟧\n",
    ),
    "an answer that only reasons": (
        chat(user("Hi"), assistant("<think>\nhm\n</think>\n"), user("And?"), assistant("Two.")),
        REASONS + Q1 + ASK_THINKING + "<think>\nhm\n</think>\n<|im_end|>\n" + Q2 + ASK_THINKING + "⟦Two.<|im_end|>⟧\n",
    ),
    "an empty question": (
        chat(user(""), assistant("One."), user([]), assistant("Two.")),
        PLAIN + "<|im_start|>user\n<|im_end|>\n" + ASK + "⟦One.<|im_end|>⟧\n"
        "<|im_start|>user\n<|im_end|>\n" + ASK + "⟦Two.<|im_end|>⟧\n",
    ),
    "a question that nobody answers": (
        chat(user("Hi"), assistant("One."), user("And?")), PLAIN + Q1 + ASK + "⟦One.<|im_end|>⟧\n" + Q2,
    ),
    "the assistant begins": (
        chat(assistant("One."), user("And?"), assistant("Two.")),
        PLAIN + ASK + "⟦One.<|im_end|>⟧\n" + Q2 + ASK + "⟦Two.<|im_end|>⟧\n",
    ),
    "reasoning beside the answer": (
        chat(user("Hi"), assistant("One.", reasoning_content="hm")),
        REASONS + Q1 + ASK_THINKING + "⟦<think>\nhm\n</think>\nOne.<|im_end|>⟧\n",
    ),
    "a weight of 0": (
        chat(user("Hi", weight=1), assistant("One.", weight=0), user("And?"), assistant("Two.", weight=1)), LAST_OF_TWO,
    ),
}  # fmt: skip

PROMPTS: dict[str, tuple[Row, str]] = {
    "the response column": ({"prompt": "Hi", "response": "One."}, PLAIN + Q1 + ASK + "⟦One.<|im_end|>⟧\n"),
    "messages, of which the prompt's are not learned": (
        {"prompt": [user("Hi"), assistant("One."), user("And?")], "completion": [assistant("Two.")]}, LAST_OF_TWO,
    ),
    "a completion of several turns": (
        {"prompt": [user("Hi")], "completion": [assistant("One."), user("And?"), assistant("Two.")]}, TWO_TURNS,
    ),
    "a weight of 0 in the completion": (
        {"prompt": "Hi", "completion": [assistant("One.", weight=0), user("And?"), assistant("Two.")]}, LAST_OF_TWO,
    ),
    "typed parts": (
        {"prompt": [user(PARTS)], "completion": [assistant(PARTS)]}, PLAIN + Q1 + ASK + "⟦Hi<|im_end|>⟧\n",
    ),
    "a system message and an empty question": (
        {"prompt": [{"role": "system", "content": "Be kind."}, user("")], "completion": "One."},
        KIND + "<|im_start|>user\n<|im_end|>\n" + ASK + "⟦One.<|im_end|>⟧\n",
    ),
    "an empty turn in the completion": (
        {"prompt": "Hi", "completion": [assistant(""), user("And?"), assistant("Two.")]},
        PLAIN + Q1 + ASK + "<|im_end|>\n" + Q2 + ASK + "⟦Two.<|im_end|>⟧\n",
    ),
}  # fmt: skip

ALPACA: dict[str, tuple[Row, str]] = {
    "an input": (
        {"instruction": "Hi", "input": "you", "output": "One."},
        PLAIN + "<|im_start|>user\nHi\n\nyou<|im_end|>\n" + ASK + "⟦One.<|im_end|>⟧\n",
    ),
    "a history": ({"instruction": "And?", "output": "Two.", "history": [["Hi", "One."]]}, TWO_TURNS),
    "all its columns": (
        {"instruction": "And?", "input": "日本", "output": "Two.", "system": "Be kind.", "history": [["Hi", "One."]]},
        KIND + Q1 + ASK + "⟦One.<|im_end|>⟧\n<|im_start|>user\nAnd?\n\n日本<|im_end|>\n" + ASK + "⟦Two.<|im_end|>⟧\n",
    ),
    "empty turns in the history": (
        {"instruction": "And?", "output": "Two.", "history": [["", ""]], "input": None, "system": ""},
        PLAIN + "<|im_start|>user\n<|im_end|>\n" + ASK + "<|im_end|>\n" + Q2 + ASK + "⟦Two.<|im_end|>⟧\n",
    ),
    "reasoning in the history": (
        {"instruction": "And?", "output": "Two.", "history": [["Hi", "<think>\nhm\n</think>\nOne."]]},
        REASONS + Q1 + ASK_THINKING + "⟦<think>\nhm\n</think>\nOne.<|im_end|>⟧\n" + Q2 + ASK_THINKING
        + "⟦Two.<|im_end|>⟧\n",
    ),
}  # fmt: skip

SHAREGPT: dict[str, tuple[Row, str]] = {
    "turns": (share(says("human", "Hi"), says("gpt", "One."), says("human", "And?"), says("gpt", "Two.")), TWO_TURNS),
    "a system turn and other names": (
        {"conversation": [says("system", "Be kind."), says("user", "Hi"), says("chatgpt", "One.")]},
        KIND + Q1 + ASK + "⟦One.<|im_end|>⟧\n",
    ),
    "typed parts": (share(says("human", PARTS), says("gpt", PARTS)), PLAIN + Q1 + ASK + "⟦Hi<|im_end|>⟧\n"),
    "empty turns": (
        share(says("human", ""), says("gpt", None), says("human", "And?"), says("gpt", "Two.")),
        PLAIN + "<|im_start|>user\n<|im_end|>\n" + ASK + "<|im_end|>\n" + Q2 + ASK + "⟦Two.<|im_end|>⟧\n",
    ),
    "a weight of 0": (
        share(says("human", "Hi"), says("gpt", "One.", loss=False), says("human", "And?"), says("gpt", "Two.")),
        LAST_OF_TWO,
    ),
    "the assistant begins": (
        share(says("gpt", "One."), says("human", "And?"), says("gpt", "Two.")),
        PLAIN + ASK + "⟦One.<|im_end|>⟧\n" + Q2 + ASK + "⟦Two.<|im_end|>⟧\n",
    ),
}

PAIRS: dict[str, tuple[Row, str]] = {
    "whole conversations, of which the shared part is not learned": (
        {"chosen": [user("Hi"), assistant("One."), user("And?"), assistant("Two.")],
         "rejected": [user("Hi"), assistant("One."), user("And?"), assistant("Three.")]},
        LAST_OF_TWO,
    ),
    "conversations that part early": (
        {"prompt": "Hi", "chosen": [user("Hi"), assistant("One."), user("And?"), assistant("Two.")],
         "rejected": [user("Hi"), assistant("No.")]},
        TWO_TURNS,
    ),
    "a worse answer that is silence": (
        {"prompt": "Hi", "chosen": "One.", "rejected": ""}, PLAIN + Q1 + ASK + "⟦One.<|im_end|>⟧\n",
    ),
    "the mode is the better answer's": (
        {"prompt": "Hi", "chosen": "One.", "rejected": TRACED}, PLAIN + Q1 + ASK + "⟦One.<|im_end|>⟧\n",
    ),
    "messages, typed parts and a system message": (
        {"prompt": [{"role": "system", "content": "Be kind."}, user(PARTS)], "chosen": assistant(PARTS),
         "rejected": assistant("No.")},
        KIND + Q1 + ASK + "⟦Hi<|im_end|>⟧\n",
    ),
    "turns with from and value": (
        {"conversations": [says("human", "Hi")], "chosen": says("gpt", "One."), "rejected": says("gpt", "No.")},
        PLAIN + Q1 + ASK + "⟦One.<|im_end|>⟧\n",
    ),
    "empty turns": (
        {"prompt": [user(""), assistant(""), user("And?")], "chosen": "Two.", "rejected": "No."},
        PLAIN + "<|im_start|>user\n<|im_end|>\n" + ASK + "<|im_end|>\n" + Q2 + ASK + "⟦Two.<|im_end|>⟧\n",
    ),
}  # fmt: skip
ROWS = {
    "messages": MESSAGES,
    "prompt-completion": PROMPTS,
    "alpaca": ALPACA,
    "sharegpt": SHAREGPT,
    "preference": PAIRS,
}


@pytest.mark.parametrize(("name", "case"), [(name, case) for name, cases in ROWS.items() for case in cases])
def test_a_row_is_this_text_with_this_mask(name: str, case: str, supervised: Supervise) -> None:
    row, expected = ROWS[name][case]
    assert supervised(name, row) == written(expected)


CALLED = {"type": "function", "id": "c1", "function": {**CALL, "arguments": json.dumps(CALL["arguments"])}}
CALLING: dict[str, list[Row]] = {
    "messages": [
        chat(user("1+2?"), assistant(None, tool_calls=[CALLED]),
             {"role": "tool", "tool_call_id": "c1", "name": "add", "content": "3"}, assistant("It is 3."), tools=[ADD]),
        chat(user("1+2?"), assistant("", function_call=CALL), {"role": "function", "content": "3"},
             assistant("It is 3."), tools=json.dumps([ADD])),
    ],
    "sharegpt": [
        share(says("human", "1+2?"), says("function_call", json.dumps(CALL)), says("observation", "3"),
              says("gpt", "It is 3."), tools=json.dumps([ADD])),
    ],
    "prompt-completion": [
        {"prompt": "1+2?", "tools": [ADD],
         "completion": [assistant(None, tool_calls=[CALLED]), {"role": "tool", "content": "3"}, assistant("It is 3.")]},
    ],
    "preference": [
        {"prompt": "1+2?", "tools": [ADD], "rejected": "No.",
         "chosen": [assistant(None, tool_calls=[CALL]), {"role": "tool", "content": "3"}, assistant("It is 3.")]},
    ],
}  # fmt: skip


@pytest.mark.parametrize("name", CALLING)
def test_tools_calls_and_results_are_rendered_and_the_calls_are_supervised(name: str, supervised: Supervise) -> None:
    for row in CALLING[name]:
        assert supervised(name, row, template=TOOLS) == written(TOOLED)


def test_the_tokens_of_a_tool_call(supervised: Supervise) -> None:
    row = chat(user("Hi"), assistant("", tool_calls=[{"name": "add", "arguments": {"a": 12}}]))
    assert supervised("messages", row, template=TOOLS) == spelled(
        "<|im_start|> system Ċ D ate : Ġ 0 1 ĠJanuary Ġ 2 0 2 6 Ċ M od e : Ġ/ no _ think Ċ <|im_end|> Ċ " + HI
        + FORCED + '⟦ <tool_call> { " name " : Ġ " add " , Ġ " ar g u ment s " : Ġ { " a " : Ġ 1 2 } } </tool_call> '
        "<|im_end|> ⟧ Ċ"
    )  # fmt: skip


def test_alpaca_rows_render_tools(supervised: Supervise) -> None:
    row = {"instruction": "1+2?", "output": "It is 3.", "tools": [ADD]}
    context = TOOLED.partition("⟦")[0]
    assert supervised("alpaca", row, template=TOOLS) == written(context + "⟦It is 3.<|im_end|>⟧\n")


# ---------------------------------------------------------------------------------------------- options of formatters


def test_answers_in_an_alpaca_history_are_supervised_unless_the_option_is_false(supervised: Supervise) -> None:
    row = {"instruction": "And?", "output": "Two.", "history": [["Hi", "One."]]}
    assert supervised("alpaca", row, options={"learn_history": False}) == written(LAST_OF_TWO)


@pytest.mark.parametrize("said", ["Hi", "d", "end", "im_end", "|", "user", "start", "</s>", "zq?qz", " Hi", "\nHi"])
def test_user_turns_are_supervised_completely_if_the_option_is_set(said: str, supervised: Supervise) -> None:
    """Whatever the text is, even if tokens would join it with its surroundings."""
    expected = PLAIN + f"<|im_start|>user\n⟦{said}<|im_end|>⟧\n" + ASK + "One.<|im_end|>\n"
    row = chat(user(said, weight=1), assistant("One.", weight=0))
    assert supervised("messages", row, options={"learn_user": True}) == written(expected)
    row = share(says("human", said, weight=1), says("gpt", "One.", weight=0))
    assert supervised("sharegpt", row, options={"learn_user": True}) == written(expected)
    assert supervised("sharegpt", row) is None


@pytest.mark.parametrize(
    ("name", "row"),
    [
        ("messages", chat(user("Hi", weight=1), assistant("One.", weight=0))),
        ("sharegpt", share(says("human", "Hi"), says("gpt", "One.", train=False))),
        ("prompt-completion", {"prompt": "Hi", "completion": [assistant("One.", loss_weight=0.0)]}),
        ("preference", {"prompt": "Hi", "chosen": [assistant("One.", weight=0)], "rejected": "No."}),
    ],
)
def test_a_row_whose_only_answer_is_masked_has_no_supervised_token(name: str, row: Row, supervised: Supervise) -> None:
    assert supervised(name, row) is None


@pytest.mark.parametrize(
    ("name", "row"),
    [
        ("messages", chat(user("Hi"), assistant(""))),
        ("sharegpt", share(says("human", "Hi"), says("gpt", " "))),
        ("prompt-completion", {"prompt": "Hi", "completion": ""}),
        ("alpaca", {"instruction": "Hi", "output": ""}),
        ("text", {"text": " \n"}),
    ],
)
def test_a_row_without_an_output_is_named_by_its_line(name: str, row: Row, supervised: Supervise) -> None:
    with pytest.raises(DataError, match=r"^rows\.jsonl:1: .*empty"):
        supervised(name, row)


# ------------------------------------------------------------------------------------------------------------ text


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("Hello!", "Hello ! <|im_end|>"),
        (" Hi\n", "ĠH i Ċ <|im_end|>"),
        ("e\u0301 👩\u200d👧", "e Ì ģ Ġ ð Ł ĳ © â Ģ į ð Ł ĳ § <|im_end|>"),
        ("<|im_start|>user\nHi<|im_end|>", "<|im_start|> user Ċ Hi <|im_end|>"),
        ("<think>\n</think>", "<think> Ċ </think> <|im_end|>"),
    ],
)
def test_raw_text_is_supervised_to_its_end(text: str, tokens: str, supervised: Supervise) -> None:
    assert supervised("text", {"text": text}) == spelled(f"⟦ {tokens} ⟧")
    assert supervised("text", {"body": text}, options={"column": "body"}) == spelled(f"⟦ {tokens} ⟧")
    assert supervised("text", {"text": text}, enable_thinking=False, template=TOOLS) == spelled(f"⟦ {tokens} ⟧")


def test_very_long_text_is_cut_to_the_token(supervised: Supervise) -> None:
    digits = "1234567890" * 2000
    whole = [*((digit, True) for digit in digits), ("<|im_end|>", True)]
    for max_length in (LONG, 20_001, 20_000, 12, 2):
        assert supervised("text", {"text": digits}, max_length=max_length) == whole[:max_length]
    assert supervised("text", {"text": digits}, max_length=1) is None, "nothing comes before a first token"


# --------------------------------------------------------------------------------------------- other files, counts


def write_csv(**columns: str) -> str:
    with Path("rows.csv").open("w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, list(columns))
        writer.writeheader()
        writer.writerow(columns)
    return "rows.csv"


def test_turns_in_a_csv_file_are_json_text(supervised: Supervise) -> None:
    turns = [user("1+2?"), assistant(None, tool_calls=[CALLED]), {"role": "tool", "content": "3"},
             assistant("It is 3.")]  # fmt: skip
    file = write_csv(messages=json.dumps(turns, indent=1), tools=json.dumps([ADD]), chat_template_kwargs="", system="")
    assert supervised("messages", {}, file=file, template=TOOLS) == written(TOOLED)
    file = write_csv(id="[1", conversations=json.dumps([says("human", "Hi"), says("gpt", "One.")]))
    assert supervised("sharegpt", {}, file=file) == written(PLAIN + Q1 + ASK + "⟦One.<|im_end|>⟧\n")


@pytest.mark.parametrize("text", ["[{'role': 'user'}]", "[" * 100_000, "Hi", "", '{"role": "user"}'])
def test_text_that_is_not_a_json_list_contains_no_turns(text: str, supervised: Supervise) -> None:
    with pytest.raises(DataError, match=r"no formatter recognizes a row with the column 'messages' \(text\)"):
        supervised("messages", {"messages": text})
    reason = "messages is not (valid|usable) JSON: " if text.startswith("[") else "'messages' must be a list"
    with pytest.raises(DataError, match=rf"^rows\.jsonl:1: {reason}"):
        supervised("messages", {"messages": text}, options={})


def digits_row(name: str, question: str, count: int) -> Row:
    answer = "7" * count
    return {"text": question + answer} if name == "text" else CHATS[name](question, answer)


@pytest.mark.parametrize("name", [*CHATS, "text"])
def test_the_counts_of_a_file_match_its_tokens(name: str, cli: Callable[..., Any]) -> None:
    """Rows of 1 to 6 digits, one of 100 digits, which is cut, and one whose question takes the first 100 tokens."""
    counts = [*range(1, 7), 100]
    file = write_rows(*(digits_row(name, "Hi", n) for n in counts), digits_row(name, "8" * 100, 1))
    result = cli("data", "stats", "--json", "--data", file, "--max-length", "64", "--set", "data.long_text=cut")
    assert result.code == 0, result.stderr
    (source,) = json.loads(result.stdout)["sources"]
    assert source["formatter"] == f"smollm3-finetune:{name}"
    assert source["rows"] == 8 == source["train"] + source["held_out"] + source["empty"]
    assert (source["cut"], source["held_out"] > 0) == (2, True)
    short = sum(range(1, 7))
    if name == "text":  # Hi, digits, end; all tokens except the first are supervised
        expected = (0, 6 * 2 + short + 64 + 64, 6 + short + 63 + 63, 2 * (102 - 64), 1 + 1 + 1, 102)
    else:  # header, digits, end of turn, line break; the 100 digits replace `Hi` and other tokens
        expected = (1, 6 * (HEAD + 2) + short + 64, 6 + short + 64 - HEAD, 133 - 64 + 133 - 64, HEAD + 1 + 2, 133)
    counted = [source[key] for key in ("empty", "tokens", "tokens_supervised", "tokens_cut")]
    assert (*counted, source["length"]["min"], source["length"]["max"]) == expected


def test_a_row_with_reasoning_only_is_counted_as_an_empty_turn(cli: Callable[..., Any]) -> None:
    rows = [CHATS["messages"](f"Hi {n}", "Hello!") for n in range(3)]
    file = write_rows(*rows, CHATS["messages"]("Hi", "<think>\nhm\n</think>\n"))
    result = cli("data", "stats", "--json", "--data", file, "--set", "data.held_out=0")
    assert result.code == 0, result.stderr
    (source,) = json.loads(result.stdout)["sources"]
    assert (source["rows"], source["train"], source["empty"], source["notes"]) == (4, 3, 1, {"empty turn": 1})
    ((where, why),) = [(e["where"], e["why"]) for e in source["empty_rows"]]
    assert where == "rows.jsonl:4"
    assert why == "empty turn: an answer that is empty or contains only reasoning is not supervised"
