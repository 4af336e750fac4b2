"""What `smollm3 chat` draws on a terminal: Markdown piece by piece, folded reasoning, two answers side by side."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from typing import Any

import pytest

from smollm3_finetune.cli.output import chat_terminal, markdown
from smollm3_finetune.cli.output.chat_terminal import Terminal
from smollm3_finetune.cli.output.markdown import MarkdownStream, blocks, console, split_reasoning
from smollm3_finetune.inference.chat import Reply, Side
from smollm3_finetune.inference.decoding import Answer, Finish

ANSWER = """# Sorting

Python sorts with **timsort**:

1. Choose a `key`
2. Call `sorted`
   - nested

```python
# Sorts.
def f(rows):

    return sorted(rows)
```

| name | cost |
|------|-----:|
| bogo | n!   |

> quoted

Heading
-------
The [end](https://example.org).
"""
TITLES: dict[Side, str] = {"model": "with lora", "base": "base"}


@pytest.fixture(autouse=True)
def draw_each_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (markdown, chat_terminal):
        monkeypatch.setattr(module, "EVERY", 0.0)


def streamed(text: str, size: int) -> str:
    """What is printed finally: the live part is left out, because the output is not a terminal."""
    out = io.StringIO()
    with MarkdownStream(console(out, width=60)) as stream:
        for start in range(0, len(text), size):
            stream.write(text[start : start + size])
    return out.getvalue()


def test_the_pieces_of_an_answer_do_not_change_what_is_drawn() -> None:
    whole = streamed(ANSWER, len(ANSWER))
    assert all(streamed(ANSWER, size) == whole for size in (1, 7, 40))
    lines = whole.splitlines()
    assert lines[:3] == ["Sorting", "", "Python sorts with timsort:"]
    assert "    return sorted(rows)" in whole and " bogo    n!" in whole
    assert not re.search(r"\n\n\n", whole), "one empty line between two blocks"


@pytest.mark.parametrize(
    "text", [ANSWER, "", "\n", "a", "- a\n- b\n\nc", "a\u2028b\n\nc\x0cd\n\ne", "```\nx\n\ny", "<b>\n\nx"]
)
def test_the_blocks_of_a_text_are_the_text(text: str) -> None:
    assert "".join(blocks(text)) == text
    for end in range(len(text)):  # a block that is not the last one stays as it is
        *finished, _ = blocks(text[:end])
        assert blocks(text)[: max(len(finished) - 1, 0)] == finished[:-1]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Hello", (None, "Hello", True)),
        ("<thi", ("", "", False)),
        ("<think>\nOne", ("One", "", False)),
        ("<think>\nOne\n</think>\n\nTwo", ("One", "Two", True)),
        ("<think>\n\n</think>\nTwo", ("", "Two", True)),
        ("use <think> and </think>", (None, "use <think> and </think>", True)),
        ("", (None, "", True)),
    ],
)
def test_reasoning_is_split_from_an_answer(text: str, expected: tuple[str | None, str, bool]) -> None:
    assert split_reasoning(text) == expected


def test_reasoning_is_folded() -> None:
    text = "<think>\nOne two three.\n</think>\n\nThe *answer*."
    expected = "[reasoning: 3 words; /reasoning shows it]\n\nThe answer.\n"
    assert streamed(text, 3) == streamed(text, 100) == expected
    assert streamed("<think>\nOne two", 3) == "[reasoning: 2 words; /reasoning shows it]\n", "an answer that was cut"


def test_control_characters_of_an_answer_are_escaped() -> None:
    assert streamed("a\x1b[31mb\u202e", 4) == "a\\x1b[31mb\\u202e\n"


def reply(side: Side, text: str, finish: Finish = "stop") -> Reply:
    return Reply(side, Answer([1, 2], text, finish), prompt_tokens=10, room=24)


def shown(answers: Sequence[Reply], width: int) -> str:
    """What is printed finally on a screen of this width."""
    out = io.StringIO()
    screen = Terminal(out, TITLES, 2048)
    screen.console = console(out, width=width)
    with screen.answering("a", [r.side for r in answers]) as answering:
        for one in answers:
            for piece in re.findall(r"\s*\S+", one.answer.text):
                answering.write(one.side, piece)
            answering.done(one)
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines())


TWO = [reply("model", "Hello! It is Paris. See you soon."), reply("base", "It is Paris.")]


def test_two_answers_are_side_by_side_or_one_below_the_other() -> None:
    wide = shown(TWO, 100).splitlines()
    assert wide[0].split() == ["with", "lora", "│", "base"]
    assert wide[1].split("│") == [wide[1].split("│")[0], " It is Paris."]
    narrow = shown(TWO, 60).splitlines()
    assert [line.split(" ─")[0] for line in narrow[:4]] == [
        "with lora", "Hello! It is Paris. See you soon.", "base", "It is Paris.",
    ]  # fmt: skip


@pytest.mark.parametrize("width", [60, 100])
def test_equal_answers_are_shown_once(width: int) -> None:
    text = shown([reply("model", "It is Paris."), reply("base", "It is Paris.")], width)
    assert text.count("It is Paris.") == 1 and "base: same answer" in text


@pytest.mark.parametrize("width", [60, 100])
def test_an_answer_that_is_a_beginning_of_the_other_is_shown(width: int) -> None:
    text = shown([reply("model", "It is Paris. Yes."), reply("base", "It is Paris.")], width)
    assert text.count("It is Paris.") == 2 and "same answer" not in text


@pytest.mark.parametrize(
    ("finish", "room", "note"),
    [
        ("cut", 24, "[cut: what was generated is kept]"),
        ("length", 24, "[cut at 24 new tokens: --max-new-tokens]"),
    ],
)
def test_a_cut_answer_is_marked(finish: Finish, room: int, note: str) -> None:
    assert shown([reply("model", "It is", finish)], 60).splitlines() == ["It is", note]
    assert note in shown([reply("model", "It is", finish), TWO[1]], 100).replace("\n", " ")


def test_an_answer_at_the_end_of_the_context_says_so() -> None:
    out: Any = io.StringIO()
    full = Reply("model", Answer([1] * 24, "It is", "length"), prompt_tokens=2024, room=24)
    note: Any = Terminal(out, TITLES, 2048).note(full)
    assert note.plain == "[cut at the end of the context of 2048 tokens]"
    assert Terminal(out, TITLES, 2048).note(reply("model", "")).plain == "[empty answer]"  # type: ignore[union-attr]
