"""Rows: read with file and line, recognized, formatted, and split by content."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from smollm3_finetune.api import Conversation, NoOptions
from smollm3_finetune.builtin.formatters import AlpacaFormatter, MessagesFormatter
from smollm3_finetune.components.discovery import PluginSelection, discover
from smollm3_finetune.components.registry import Registry
from smollm3_finetune.data.files import Row
from smollm3_finetune.data.formatting import formatted, recognize
from smollm3_finetune.data.rows import source_rows
from smollm3_finetune.data.sources import find_sources
from smollm3_finetune.data.split import SplitThreshold, position
from smollm3_finetune.errors import ConfigError, DataError

Write = Callable[..., str]


def read_rows(path: str | None, limit: int | None = None) -> list[Row]:
    return list(source_rows(find_sources(path)[0], limit))


def format_rows(formatter: Any, rows: list[Row]) -> list[Conversation]:
    return [conversation for _, conversation in formatted(formatter, rows)]


def split(rows: list[Conversation], fraction: float, seed: int) -> tuple[list[Conversation], list[Conversation]]:
    """(training, held-out)"""
    threshold = SplitThreshold(fraction)
    for row in rows:
        threshold.observe(position(row, seed))
    value = threshold.value()
    return [r for r in rows if position(r, seed) >= value], [r for r in rows if position(r, seed) < value]


@pytest.fixture
def write(isolated: Path) -> Write:
    def make(text: str | bytes, name: str = "rows.jsonl") -> str:
        Path(name).write_bytes(text if isinstance(text, bytes) else text.encode())
        return name

    return make


# ------------------------------------------------------------------------------------------------ reading


def test_jsonl_rows_have_line_numbers_that_count_blank_lines(write: Write) -> None:
    rows = read_rows(write('\n{"a": 1}\n\n   \n{"a": 2}'))
    assert [(r.value, r.where) for r in rows] == [({"a": 1}, "rows.jsonl:2"), ({"a": 2}, "rows.jsonl:5")]


def test_a_byte_order_mark_and_windows_line_ends_are_removed(write: Write) -> None:
    text = b'\xef\xbb\xbf{"a": "x"}\r\n{"a": "y"}\r\n'
    assert [(r.value["a"], r.where) for r in read_rows(write(text))] == [("x", "rows.jsonl:1"), ("y", "rows.jsonl:2")]
    text = b'\xef\xbb\xbf[{"a": "x"},\r\n {"a": "y"}]\r\n'
    rows = read_rows(write(text, "rows.json"))
    assert [(r.value["a"], r.where) for r in rows] == [("x", "rows.json:1"), ("y", "rows.json:2")]


def test_a_byte_order_mark_is_removed_from_the_first_column(write: Write) -> None:
    assert [r.value for r in read_rows(write(b"\xef\xbb\xbfa,b\r\nx,y\r\n", "rows.csv"))] == [{"a": "x", "b": "y"}]


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize(
    ("name", "head", "row", "tail"),
    [
        ("r.jsonl", b"", b'{"a": "\xc3\xa9"}\n', b'{"a": "caf\xe9"}\n'),
        ("r.jsonl", b"", b'{"a": "\xc3\xa9"}\r\n', b'{"a": "caf\xe9"}\r\n'),
        ("r.csv", b"a,b\n", b'"\xc3\xa9\nin two lines",2\n', b"caf\xe9,3\n"),
        ("r.json", b"[\n", b'{"a": "\xc3\xa9"},\r\n', b'{"a": "caf\xe9"}]\n'),
    ],
)
def test_text_that_is_not_utf8_is_an_error_with_line_and_byte(
    name: str, head: bytes, row: bytes, tail: bytes, mark: bytes, write: Write
) -> None:
    before = mark + head + row * 3000  # many times the size of a decoded block
    line, byte = before.count(b"\n") + 1, len(before) + tail.index(b"\xe9")
    with pytest.raises(DataError) as caught:
        read_rows(write(before + tail, name))
    said = f"{name}:{line}: not UTF-8 text: invalid continuation byte at byte {byte} of the file"
    assert caught.value.message == said


def test_a_file_that_ends_within_a_character_is_an_error_with_its_last_line(write: Write) -> None:
    with pytest.raises(DataError, match=r"r\.jsonl:2: not UTF-8 text: unexpected end of data at byte 16 of the file"):
        read_rows(write(b'{"a": 1}\n{"a": "\xe4\xbd', "r.jsonl"))


def test_unicode_line_separators_inside_a_row_do_not_end_it(write: Write) -> None:
    rows = read_rows(write('{"a": "x\u2028y\x85z"}\n'))
    assert [r.value["a"] for r in rows] == ["x\u2028y\x85z"]


def test_json_rows_have_the_number_of_their_first_line(write: Write) -> None:
    text = '\n[\n  {"a": 1},\n  {\n    "a": 2\n  }\n,\n {"a": 3} ]\n\n'
    rows = read_rows(write(text, "rows.json"))
    assert [(r.value["a"], r.where) for r in rows] == [(1, "rows.json:3"), (2, "rows.json:4"), (3, "rows.json:8")]


@pytest.mark.parametrize(
    ("text", "name", "expected"),
    [
        ('{"a": 1}\n{"a": \n', "r.jsonl", r"r\.jsonl:2: not valid JSON: Expecting value \(column 7\)"),
        ('{"a": 1}\n\n{"a": "tru', "r.jsonl", r"r\.jsonl:3: not valid JSON: Unterminated string"),
        ('{"a": 1} {"a": 2}\n', "r.jsonl", r"r\.jsonl:1: not valid JSON: Extra data"),
        ('{"a": 1}\n[1, 2]\n', "r.jsonl", r"r\.jsonl:2: a row must be an object, found a list"),
        ('"text"\n', "r.jsonl", r"r\.jsonl:1: a row must be an object, found text"),
        ('[\n{"a": 1},\n[1]]', "r.json", r"r\.json:3: a row must be an object, found a list"),
        ('[\n{"a": 1},\n{"a" 2}]', "r.json", r"r\.json:3: not valid JSON: Expecting ':' delimiter \(column 6\)"),
        ('[\n{"a": 1}\n{"a": 2}]', "r.json", r"r\.json:3: not valid JSON: expected ',' or '\]'"),
        ('[{"a": 1},\n', "r.json", r"r\.json:2: not valid JSON"),
        ('[{"a": 1}', "r.json", r"r\.json:1: not valid JSON"),
        ('[{"a": 1}]\n[{"a": 2}]\n', "r.json", r"r\.json:2: not valid JSON: text after the list"),
        ('{"data": []}', "r.json", r"r\.json: expected a list of rows"),
        ("", "r.json", r"r\.json: expected a list of rows"),
        ("[ ]", "r.json", r"r\.json contains no rows"),
        ("", "r.jsonl", r"r\.jsonl contains no rows"),
        ("\n \n", "r.jsonl", r"r\.jsonl contains no rows"),
        (b"\xff\xfe{\x00}\x00", "r.jsonl", r"r\.jsonl:1: not UTF-8 text: invalid start byte at byte 0 of the file"),
    ],
)
def test_malformed_files_are_errors_with_file_and_line(text: Any, name: str, expected: str, write: Write) -> None:
    with pytest.raises(DataError, match=expected) as caught:
        read_rows(write(text, name))
    assert caught.value.exit_code == 5


def test_unsupported_files_are_errors_with_a_hint(write: Write, isolated: Path) -> None:
    write("{}", "train.jsonl")
    write("a,b", "train.txt")
    write("", "rows.parquet.gz")
    (isolated / "folder").mkdir()
    for path, message, hint in (
        (
            "trian.jsonl",
            "the data file 'trian.jsonl' does not exist",
            "did you mean 'train.jsonl'?",
        ),
        ("wholly_different", "does not exist", "data files in the current directory: train.jsonl"),
        ("none/rows.jsonl", "does not exist", "--data FILE.jsonl"),
        (
            "train.txt",
            "must have one of these extensions: .jsonl, .ndjson, .json, .csv, .tsv, .parquet, .arrow, or text",
            "--data FILE.jsonl",
        ),
        ("rows.parquet.gz", "must have one of these extensions: .* compressed as .gz or .zst", "--data FILE.jsonl"),
        ("folder", "the data directory 'folder' contains no data files .*.jsonl", "--data FILE.jsonl"),
        ("folder/*.jsonl", "no file matches", "data files in the current directory: train.jsonl"),
    ):
        with pytest.raises(DataError, match=message) as caught:
            read_rows(path)
        assert caught.value.hint == hint


def test_a_limit_stops_reading_early(write: Write) -> None:
    assert [r.value["a"] for r in read_rows(write('{"a": 1}\n{"a": 2}\n{broken'), limit=2)] == [1, 2]


def test_without_a_path_the_embedded_rows_are_all_usable() -> None:
    rows = read_rows(None)
    assert len(rows) > 100
    assert len(format_rows(MessagesFormatter(NoOptions()), rows)) == len(rows)


# --------------------------------------------------------------------------------------------- formatting


def messages(*turns: Any, **columns: Any) -> dict[str, Any]:
    return {"messages": [{"role": r, "content": c} for r, c in turns], **columns}


def one(formatter: type, row: dict[str, Any]) -> Conversation:
    (conversation,) = format_rows(formatter(NoOptions()), [Row(row, "rows.jsonl:1")])
    return conversation


def test_messages_keep_their_turns_tools_and_template_arguments() -> None:
    row = messages(("system", "s"), ("user", "u"), ("assistant", "a"), tools=[{"name": "t"}])
    row["chat_template_kwargs"] = {"enable_thinking": False}
    conversation = one(MessagesFormatter, row)
    assert conversation.messages == tuple(row["messages"])
    assert conversation.tools == ({"name": "t"},)
    assert conversation.template_kwargs == {"enable_thinking": False}


def test_typed_parts_with_text_or_value_are_joined() -> None:
    parts = [{"type": "text", "text": "one "}, {"type": "text", "value": "two"}]
    conversation = one(MessagesFormatter, messages(("user", parts), ("assistant", "a")))
    assert conversation.messages[0]["content"] == "one two"


def test_a_tool_call_needs_no_content() -> None:
    calls = [{"type": "function", "function": {"name": "f", "arguments": {}}}]
    row = {"messages": [{"role": "user", "content": "u"}, {"role": "assistant", "tool_calls": calls}]}
    assert one(MessagesFormatter, row).messages[1] == {"role": "assistant", "tool_calls": calls, "content": ""}


def test_alpaca_rows_put_the_input_after_the_instruction() -> None:
    row = {"instruction": "Add.", "input": "1 2", "output": "3", "system": "Brief."}
    assert [(m["role"], m["content"]) for m in one(AlpacaFormatter, row).messages] == [
        ("system", "Brief."), ("user", "Add.\n\n1 2"), ("assistant", "3"),
    ]  # fmt: skip
    for missing in ({"input": ""}, {"input": None}, {}):
        conversation = one(AlpacaFormatter, {"instruction": "Hi.", "output": "Ho.", **missing})
        assert [m["content"] for m in conversation.messages] == ["Hi.", "Ho."]


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"messages": []}, "'messages' must be a list with at least one message"),
        ({"messages": "hello"}, "'messages' must be a list of messages with role and content, found text"),
        ({"messages": ["hello"]}, r"messages\[0\] must be an object with role and content"),
        (messages(("narrator", "u"), ("assistant", "a")), r"messages\[0\]: found the role 'narrator'"),
        (messages(("user", "u")), "there is no assistant message to train on"),
        (messages(("user", None), ("assistant", "a")), r"messages\[0\]: content must be text or a list"),
        (messages(("user", 3), ("assistant", "a")), ".*found a number"),
        (
            messages(("user", [{"type": "image", "url": "x"}]), ("assistant", "a")),
            r"messages\[0\]: only text and reasoning parts are supported",
        ),
        (
            messages(("user", [{"type": "text"}]), ("assistant", "a")),
            r"messages\[0\]: a text part needs text in 'text'",
        ),
    ],
)
def test_a_row_of_messages_without_usable_fields_is_named(row: dict[str, Any], expected: str) -> None:
    with pytest.raises(DataError, match=f"^rows.jsonl:1: {expected}"):
        one(MessagesFormatter, row)


@pytest.mark.parametrize(
    ("row", "problem"),
    [({"instruction": "", "output": "x"}, "'instruction' must be non-empty text"),
     ({"instruction": "x", "output": None}, "'output' must be non-empty text"),
     ({"instruction": "x", "output": "y", "input": 3}, "'input' must be text")],
)  # fmt: skip
def test_an_alpaca_row_without_usable_fields_is_named(row: dict[str, Any], problem: str) -> None:
    with pytest.raises(DataError, match=f"^rows.jsonl:1: {problem}"):
        one(AlpacaFormatter, row)


def test_several_wrong_rows_are_named_together_and_the_rest_counted() -> None:
    rows = [Row({"messages": []}, f"rows.jsonl:{n}") for n in range(1, 6)]
    rows.insert(1, Row(messages(("user", "u"), ("assistant", "a")), "rows.jsonl:99"))
    with pytest.raises(DataError) as caught:
        format_rows(MessagesFormatter(NoOptions()), rows)
    lines = caught.value.message.splitlines()
    assert [line.split(": ")[0] for line in lines[:3]] == ["rows.jsonl:1", "rows.jsonl:2", "rows.jsonl:3"]
    assert lines[3:] == ["… and 2 more rows"]


# ---------------------------------------------------------------------------------------------- detected formatter


@pytest.fixture
def registry() -> Registry:
    return discover(PluginSelection.of([], no_plugins=True))


def test_the_first_row_determines_the_formatter(registry: Registry) -> None:
    for row, name in ((messages(("user", "u")), "messages"), ({"instruction": "", "output": ""}, "alpaca")):
        assert recognize(registry, Row(row, "x")).spec.name == name


def test_unrecognized_columns_are_listed(registry: Registry) -> None:
    with pytest.raises(
        DataError, match=r"^r:1: no formatter recognizes a row with the columns 'q' \(a number\), 'a' \(a number\)\n"
    ) as caught:
        recognize(registry, Row({"q": 1, "a": 2}, "r:1"))
    assert caught.value.hint is not None and "alpaca (instruction, output, optional input)" in caught.value.hint


def test_a_row_that_two_formatters_claim_needs_a_choice(registry: Registry) -> None:
    with pytest.raises(ConfigError, match="several formatters recognize the rows of r:1") as caught:
        recognize(registry, Row({"messages": [], "instruction": "", "output": ""}, "r:1"))
    assert caught.value.hint == "--formatter smollm3-finetune:alpaca or --formatter smollm3-finetune:messages"


# -------------------------------------------------------------------------------------------------- split


def conversations(numbers: Any) -> list[Conversation]:
    return [Conversation(messages=({"role": "user", "content": f"row {n}"},)) for n in numbers]


def keys(rows: list[Conversation]) -> list[str]:
    return [json.dumps(r.messages) for r in rows]


def test_the_split_loses_nothing_and_is_near_its_fraction() -> None:
    rows = conversations(range(2000))
    train, held_out = split(rows, 0.2, seed=0)
    assert sorted(keys(train) + keys(held_out)) == sorted(keys(rows))
    assert 340 < len(held_out) < 460  # 400, within 3.4 standard deviations of a binomial


def test_the_split_of_a_row_does_not_depend_on_other_rows() -> None:
    rows = conversations(range(200))
    held_out = set(keys(split(rows, 0.2, seed=0)[1]))
    assert set(keys(split(rows[::-1], 0.2, seed=0)[1])) == held_out
    more = set(keys(split(conversations(range(-100, 400)), 0.2, seed=0)[1]))
    assert more & set(keys(rows)) == held_out
    assert set(keys(split(rows, 0.2, seed=1)[1])) != held_out


def test_equal_rows_are_on_the_same_side_of_the_split() -> None:
    rows = conversations([n % 20 for n in range(200)])
    train, held_out = split(rows, 0.3, seed=0)
    assert train and held_out
    assert not set(keys(train)) & set(keys(held_out))


@pytest.mark.parametrize("fraction", [1e-9, 0.5, 0.999999])
def test_both_sides_of_the_split_get_a_row(fraction: float) -> None:
    for seed in range(20):
        train, held_out = split(conversations(range(2)), fraction, seed)
        assert len(train) == len(held_out) == 1


def test_one_distinct_row_cannot_be_split_but_held_out_0_is_allowed() -> None:
    with pytest.raises(DataError, match="only one distinct row") as caught:
        split(conversations([1, 1]), 0.1, 0)
    assert caught.value.hint == "--set data.held_out=0"
    assert split(conversations([1, 1]), 0, 0)[1] == []
