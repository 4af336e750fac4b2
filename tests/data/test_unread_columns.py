"""Columns that belong to the question are read or refused; the others are counted by source."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from smollm3_finetune.components.discovery import PluginSelection, discover
from smollm3_finetune.components.kinds import FORMATTER
from smollm3_finetune.components.registry import Registry
from smollm3_finetune.components.selection import choose
from smollm3_finetune.data.columns import NAMES, UnreadColumns, shown
from smollm3_finetune.data.rows import Rows, Survey, with_formatter
from smollm3_finetune.data.sources import find_sources
from smollm3_finetune.errors import DataError, PluginError

Cli = Callable[..., Any]


@pytest.fixture(scope="module")
def registry() -> Registry:
    return discover(PluginSelection.of([], no_plugins=True))


def rows_of(registry: Registry, *rows: dict[str, Any], ignored: tuple[str, ...] = (), **options: Any) -> Rows:
    """The rows of a file, read by the formatter that recognizes them."""
    Path("rows.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")
    (source,) = find_sources("rows.jsonl")
    found = with_formatter(registry, source, None, None, frozenset(ignored))
    if options:
        named = choose(registry, FORMATTER, found.formatter.component.full_name, options)
        found = with_formatter(registry, source, named, None, frozenset(ignored))
    return Rows(sources=(found,), seed=0, held_out=0.0)


def survey(registry: Registry, *rows: dict[str, Any], **options: Any) -> Survey:
    return rows_of(registry, *rows, **options).survey(must_train=False)


def talk(*contents: str, **columns: Any) -> dict[str, Any]:
    roles = ("user", "assistant")
    return {"messages": [{"role": roles[i % 2], "content": c} for i, c in enumerate(contents)], **columns}


def spoken(registry: Registry, row: dict[str, Any], **options: Any) -> tuple[list[str], list[int]]:
    """The contents of the messages of a row, and the indices of the supervised ones."""
    ((_, conversation),) = rows_of(registry, row, **options).sources[0].conversations()
    contents = [f"{m['role'][0]}:{m['content']}" for m in conversation.messages]
    return contents, conversation.supervised_messages()


PROMPT = {"prompt": "Put into French:", "completion": "Bonjour"}
PAIR = {"prompt": "Shorten:", "chosen": "Brief.", "rejected": "Lengthy."}
ALPACA = {"instruction": "When?", "output": "In 1936."}
PAST = [["Choose a digit", "Seven"]]


@pytest.mark.parametrize(
    ("row", "options", "contents", "supervised"),
    [
        ({**PROMPT, "input": "Good day"}, {}, ["u:Put into French:\n\nGood day", "a:Bonjour"], [1]),
        ({**PROMPT, "query": "Good day"}, {"input": "query"}, ["u:Put into French:\n\nGood day", "a:Bonjour"], [1]),
        ({**PROMPT, "history": PAST}, {},
         ["u:Choose a digit", "a:Seven", "u:Put into French:", "a:Bonjour"], [3]),
        ({**PROMPT, "system_prompt": "Be brief."}, {}, ["s:Be brief.", "u:Put into French:", "a:Bonjour"], [2]),
        ({**ALPACA, "context": "It opened in 1936."}, {"input": "context"},
         ["u:When?\n\nIt opened in 1936.", "a:In 1936."], [1]),
        ({**PAIR, "input": "A text."}, {}, ["u:Shorten:\n\nA text.", "a:Brief."], [1]),
        ({**PAIR, "history": PAST}, {}, ["u:Choose a digit", "a:Seven", "u:Shorten:", "a:Brief."], [3]),
        ({"instruction": "Shorten:", "input": "A text.", "chosen": "Brief.", "rejected": "Lengthy."}, {},
         ["u:Shorten:\n\nA text.", "a:Brief."], [1]),
        ({"system": "Be kind.", "question": "Why?", "chosen": "So.", "rejected": "No."}, {},
         ["s:Be kind.", "u:Why?", "a:So."], [2]),
        (talk("Hi", "Arr.", system_prompt="Be a pirate."), {}, ["s:Be a pirate.", "u:Hi", "a:Arr."], [2]),
        (talk("Hi", "Arr.", system_message="Be a pirate."), {}, ["s:Be a pirate.", "u:Hi", "a:Arr."], [2]),
        (talk("Hi", "Arr.", weight=0), {}, ["u:Hi", "a:Arr."], []),
        (talk("Hi", "Arr.", training=False), {}, ["u:Hi", "a:Arr."], []),
        ({**PROMPT, "weight": 1.0}, {}, ["u:Put into French:", "a:Bonjour"], [1]),
        ({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "training": False},
                       {"role": "user", "content": "c"}, {"role": "assistant", "content": "d", "training": True}]},
         {}, ["u:a", "a:b", "u:c", "a:d"], [3]),
    ],
)  # fmt: skip
def test_columns_of_other_tools_are_read(
    row: dict[str, Any], options: dict[str, Any], contents: list[str], supervised: list[int], registry: Registry,
    isolated: Path,
) -> None:  # fmt: skip
    assert spoken(registry, row, **options) == (contents, supervised)
    assert not survey(registry, row, **options).unread[0]


APPEND = "to append it to the question: --set formatter.input={}; "
LEAVE = "to leave the column out: --set 'data.ignore_columns=[{}]'"


@pytest.mark.parametrize(
    ("row", "column", "hint"),
    [
        ({**PROMPT, "query": "Good day"}, "query", APPEND + LEAVE),
        ({**PROMPT, "context": "Good day"}, "context", APPEND + LEAVE),
        ({**ALPACA, "context": "It opened in 1936."}, "context", APPEND + LEAVE),
        ({**PAIR, "instruction": "Be very strict"}, "instruction", APPEND + LEAVE),
        ({**PAIR, "documents": [{"title": "t", "text": "x y"}]}, "documents", "put it into the messages; " + LEAVE),
        (talk("What does it say?", "Closed.", documents=[{"text": "Closed on Monday"}]), "documents",
         "put it into the messages; " + LEAVE),
        (talk("And now?", "Eight.", history=PAST), "history", "put it into the messages; " + LEAVE),
        (talk("Translate", "Bonjour", input="Good day"), "input", "put it into the messages; " + LEAVE),
        ({"prompt": [{"role": "user", "content": "Translate"}], "completion": "Bonjour", "input": "Good day"}, "input",
         "put it into the messages; " + LEAVE),
        ({"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}], "context": "c d"},
         "context", "put it into the messages; " + LEAVE),
    ],
)  # fmt: skip
def test_text_that_would_be_lost_is_refused_by_line_unless_the_column_is_left_out(
    row: dict[str, Any], column: str, hint: str, registry: Registry, isolated: Path
) -> None:
    with pytest.raises(DataError) as caught:
        survey(registry, {k: v for k, v in row.items() if k != column}, row)
    what = f"rows.jsonl:2: {column!r} has text that is not in the conversation, and is not read in this format"
    assert caught.value.message == what
    assert caught.value.hint == hint.format(column, column)
    assert survey(registry, row, ignored=(column,)).train == [1]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (talk("a", "b", weight=0.5), "'weight' must be 0 or 1 (the row is left out or trained on), found 0.5"),
        (talk("a", "b", weight=1, train=False), "'weight' (1) and 'train' (False) disagree"),
        (talk("a", "b", image="cat.png"), "'image' is not supported; only text is"),
        (talk("a", "b", system="c", system_prompt="d"),
         "'system' and 'system_prompt' are two different system prompts"),
        ({"text": "t", "weight": 0}, "'weight': text cannot be masked, found 0"),
        ({"messages": [{"role": "system", "content": "s", "tools": [{"name": "f"}]}, *talk("a", "b")["messages"]]},
         "messages[0].tools is not read: move it to the column 'tools' of the row"),
        ({"messages": [{"role": "user", "content": "a", "documents": ["d"]}, {"role": "assistant", "content": "b"}]},
         "messages[0].documents is not read: move its text to the content of the message"),
    ],
)  # fmt: skip
def test_values_that_would_change_the_meaning_of_a_row_are_refused(
    row: dict[str, Any], message: str, registry: Registry, isolated: Path
) -> None:
    with pytest.raises(DataError) as caught:
        survey(registry, row)
    assert caught.value.message == f"rows.jsonl:1: {message}"


@pytest.mark.parametrize(
    ("parts", "weight"),
    [
        ([(0, 2, False), (3, 5, False)], 0),
        ([(3, 5, True), (0, 2, True)], 1),
        ([(0, 2, True), (3, 5, False)], None),
        ([(0, 2, True)], None),
        ([(0, 1, False), (3, 5, False)], None),
    ],
)
def test_weights_of_parts_are_read_if_they_are_the_same_for_the_whole_message(
    parts: list[tuple[int, int, bool]], weight: int | None, registry: Registry, isolated: Path
) -> None:
    row = talk("u", "yes no")
    keys = ("begin_offset", "end_offset", "train")
    row["messages"][1]["train_detail"] = [dict(zip(keys, p, strict=True)) for p in parts]
    if weight is not None:
        assert spoken(registry, row) == (["u:u", "a:yes no"], [1] * weight)
        return
    with pytest.raises(DataError, match=r"rows\.jsonl:1: messages\[1\]\.train_detail trains on a part of the message"):
        survey(registry, row)


def test_a_column_that_repeats_the_conversation_is_counted_and_not_refused(registry: Registry, isolated: Path) -> None:
    row = talk("Translate: good day", "Bonjour", query="good day", history=[["Translate", None]], context=" ")
    assert survey(registry, row).unread[0] == {"query": 1, "history": 1}
    with pytest.raises(DataError, match="'query' has text"):
        survey(registry, {**row, "query": "ood day"})  # inside a word


def test_rows_with_a_value_in_an_unread_column_are_counted(registry: Registry, isolated: Path) -> None:
    rows = [
        talk("a", "b", id=0, flag=False, note=None),
        talk("c", "d", id=1, note="", tags=[]),
        talk("e", "f", id=2, note="x", label="math", conversations=[{"from": "human", "value": "e"}]),
        {"messages": [{"role": "user", "content": "g", "date": "May", "seen": None},
                      {"role": "assistant", "content": "h", "date": "June"}]},
    ]  # fmt: skip
    found = survey(registry, *rows).unread[0]
    assert found == {"id": 3, "flag": 1, "note": 1, "label": 1, "conversations": 1, "messages[].date": 1}
    assert shown({"id": 3, "flag": 1, "note": 1}, 4) == "id (3 of 4 rows), flag, note (1 of 4 rows)"


def test_a_false_label_is_counted_as_left_out_and_not_as_unread(registry: Registry, isolated: Path) -> None:
    for label in (False, "bad", "undesirable", "rejected"):
        for row in ({**PAIR, "label": label}, {**PROMPT, "kto_tag": label}, talk("a", "b", desirable=label)):
            found = survey(registry, row)
            assert (found.train, found.undesirable, found.unread) == ([0], [1], [{}])
    text = survey(registry, {"text": "t", "label": 0}, {"text": "u", "desirable": False})
    assert (text.train, text.undesirable, text.unread) == ([1], [1], [{"label": 1}])


def test_the_names_of_columns_are_shown_safely_and_within_limits() -> None:
    counts = UnreadColumns(frozenset())
    for n in range(NAMES + 5):
        counts._count(f"column {n}")
    assert len(counts.counts) == NAMES
    text = shown({"\x1b[31m" + "x" * 100: 2, **{f"c{n}": 1 for n in range(9)}}, 1)
    assert text.startswith(r"\x1b[31m" + "x" * 55 + "… (2 of 1 row), c0, c1,")
    assert text.endswith("c6 (1 of 1 row), and 2 more columns")


PLUGIN = """
from smollm3_finetune.api import Conversation, FormatterSpec, hookimpl

@hookimpl
def smollm3_formatters():
    return [FormatterSpec(name=n, summary=n, factory=f"asked:{n.title()}", api=2) for n in ("silent", "open", "wrong")]

class Silent:
    def __init__(self, options):
        pass

    def __call__(self, row):
        said = (("user", row["q"]), ("assistant", row["a"]))
        return Conversation(messages=tuple({"role": role, "content": text} for role, text in said))

class Open(Silent):
    columns = ("q", "a")

class Wrong(Silent):
    columns = "qa"
"""


def test_a_formatter_states_its_columns_or_nothing_is_reported(plugin_file: Any, isolated: Path) -> None:
    registry = discover(PluginSelection.of([str(plugin_file("asked", PLUGIN))]))
    Path("rows.jsonl").write_text(json.dumps({"q": "u", "a": "v", "id": 1}) + "\n", encoding="utf-8")
    (source,) = find_sources("rows.jsonl")

    def unread(name: str) -> dict[str, int]:
        found = with_formatter(registry, source, choose(registry, FORMATTER, name, {}), None)
        return dict(Rows(sources=(found,), seed=0, held_out=0.0).survey().unread[0])

    assert (unread("silent"), unread("open")) == ({}, {"id": 1})
    with pytest.raises(PluginError, match=r"Wrong\.columns must be a collection of names of columns, found 'qa'"):
        unread("wrong")


def test_commands_name_the_columns_that_are_not_read_by_source(cli: Cli, isolated: Path) -> None:
    Path("a.jsonl").write_text("".join(json.dumps(talk(f"a{n}", "b", id=n, note="x")) + "\n" for n in range(4)))
    Path("b.jsonl").write_text("".join(json.dumps({**PROMPT, "completion": f"{n}"}) + "\n" for n in range(3)))
    data = ("--data", "a.jsonl", "--data", "b.jsonl", "--set", "data.ignore_columns=[note]")
    for command in ("stats", "preview"):
        out = cli("data", command, *data).stdout
        assert out.count("not read") == out.count("  not read  id (4 of 4 rows)\n") == 1
    planned = cli("train", "--dry-run", "--adapter", "full", *data)
    assert "# a.jsonl: not read: id (4 of 4 rows)\n# memory" in planned.stdout
    assert "\n  ignore_columns:" in planned.stdout
