"""Compressed rows, tables with tabs, and JSON lists that are read as a stream."""

from __future__ import annotations

import csv
import gzip
import io
import json
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from smollm3_finetune.data import json_list
from smollm3_finetune.data.rows import source_rows
from smollm3_finetune.data.sources import find_sources
from smollm3_finetune.errors import DataError
from smollm3_finetune.files import limits

ROWS = [{"instruction": f"Say {n}.", "output": f"It is “{n}”,\n\tété, 你好."} for n in range(50)]


def table(delimiter: str) -> bytes:
    stream = io.StringIO(newline="")
    writer = csv.DictWriter(stream, list(ROWS[0]), delimiter=delimiter)
    writer.writeheader()
    writer.writerows(ROWS)
    return stream.getvalue().encode()


TEXTS = {
    ".jsonl": "".join(json.dumps(r) + "\n" for r in ROWS).encode(),
    ".ndjson": "".join(json.dumps(r) + "\n" for r in ROWS).encode(),
    ".json": json.dumps(ROWS, indent=1).encode(),
    ".csv": table(","),
    ".tsv": table("\t"),
}


def zstd(data: bytes) -> bytes:
    import pyarrow

    return bytes(pyarrow.Codec("zstd").compress(data, asbytes=True))


COMPRESS: dict[str, Callable[[bytes], bytes]] = {".gz": gzip.compress, ".zst": zstd}


def read(name: str, data: bytes) -> list[tuple[Any, str]]:
    """The rows of a file with this content, each with its location."""
    Path(name).write_bytes(data)
    return [(dict(r.value), r.where) for r in source_rows(find_sources(name)[0])]


@pytest.mark.parametrize("compression", COMPRESS)
@pytest.mark.parametrize("kind", TEXTS)
def test_compressed_rows_are_those_of_the_plain_file_with_the_same_lines(kind: str, compression: str) -> None:
    plain = read(f"rows{kind}", TEXTS[kind])
    assert [value for value, _ in plain] == ROWS
    packed = read(f"rows{kind}{compression}", COMPRESS[compression](TEXTS[kind]))
    assert packed == [(value, where.replace(kind, kind + compression)) for value, where in plain]


def test_a_directory_and_a_glob_find_compressed_rows() -> None:
    Path("rows").mkdir()
    for name, data in (("a.tsv", TEXTS[".tsv"]), ("b.jsonl.gz", gzip.compress(TEXTS[".jsonl"]))):
        Path("rows", name).write_bytes(data)
    Path("rows/c.txt.gz").write_bytes(b"not rows")
    assert len(list(source_rows(find_sources("rows")[0]))) == 2 * len(ROWS)
    assert len(list(source_rows(find_sources("rows/*.jsonl.gz")[0]))) == len(ROWS)


@pytest.mark.parametrize("compression", COMPRESS)
def test_files_that_were_compressed_in_pieces_are_read_whole(compression: str) -> None:
    pieces = TEXTS[".jsonl"].splitlines(keepends=True)
    data = b"".join(COMPRESS[compression](b"".join(pieces[i : i + 20])) for i in range(0, 50, 20))
    assert [value for value, _ in read(f"rows.jsonl{compression}", data)] == ROWS


@pytest.mark.parametrize(("compression", "name"), [(".gz", "gzip"), (".zst", "zstd")])
@pytest.mark.parametrize("kind", [".jsonl", ".json", ".csv"])
def test_a_truncated_or_damaged_file_is_named(kind: str, compression: str, name: str) -> None:
    file, data = f"rows{kind}{compression}", COMPRESS[compression](TEXTS[kind])
    with pytest.raises(DataError, match=f"^the {name} file {file} is truncated") as caught:
        read(file, data[:-6])
    assert (caught.value.hint, caught.value.exit_code) == ("copy the file again", 5)
    wrong = bytearray(data)
    wrong[len(wrong) // 2] ^= 0xFF
    for damaged in (bytes(wrong), TEXTS[kind]):
        with pytest.raises(DataError, match=f"^{file} is damaged or not a {name} file: .") as caught:
            read(file, damaged)
        assert caught.value.hint == f"if the rows are not compressed: mv {file} rows{kind}"


@pytest.mark.parametrize("compression", COMPRESS)
def test_wrong_rows_inside_a_compressed_file_have_their_line(compression: str) -> None:
    def compressed(text: bytes) -> bytes:
        return COMPRESS[compression](text)

    with pytest.raises(DataError, match=rf"^r\.jsonl{compression}:2: not valid JSON: Expecting value \(column 7\)"):
        read(f"r.jsonl{compression}", compressed(b'{"a": 1}\n{"a": \n'))
    with pytest.raises(DataError, match=r":2: not UTF-8 text: .* at byte 16 of the decompressed file"):
        read(f"r.jsonl{compression}", compressed(b'{"a": 1}\n{"a": "\xe9"}\n'))
    with pytest.raises(DataError, match=rf"^r\.jsonl{compression} contains no rows"):
        read(f"r.jsonl{compression}", compressed(b""))


@pytest.mark.parametrize("compression", COMPRESS)
@pytest.mark.parametrize("kind", [".jsonl", ".json", ".csv"])
def test_a_row_that_expands_without_bound_is_an_error(
    kind: str, compression: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "MB", 100_000)
    monkeypatch.setenv("SMOLLM3_MAX_JSON_MB", "1")
    monkeypatch.setattr(json_list, "BLOCK", 1000)
    long = b"x" * 20_000_000
    text = b"a\n1\n" + long if kind == ".csv" else b'[{"a": 1},\n{"a": "'[kind == ".jsonl" :] + long
    data = COMPRESS[compression](text.replace(b"},\n", b"}\n") if kind == ".jsonl" else text)
    Path(f"r{kind}{compression}").write_bytes(data)
    (source,) = find_sources(f"r{kind}{compression}")
    tracemalloc.start()
    try:
        with pytest.raises(DataError, match=r":\d: the row is larger than 1 MB"):
            list(source_rows(source))
        assert tracemalloc.get_traced_memory()[1] < 5_000_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("kind", [".jsonl", ".json", ".tsv"])
def test_memory_does_not_grow_with_the_size_of_a_file(kind: str) -> None:
    text = TEXTS[kind]
    inner = text.strip().removeprefix(b"[").removesuffix(b"]")
    many = b"[" + b",".join([inner] * 8000) + b"]" if kind == ".json" else text + text.partition(b"\n")[2] * 8000
    assert len(many) > 16_000_000
    Path(f"r{kind}.gz").write_bytes(gzip.compress(many, 1))
    tracemalloc.start()
    try:
        rows = sum(1 for _ in source_rows(find_sources(f"r{kind}.gz")[0], 30_000))
        assert rows == 30_000
        assert tracemalloc.get_traced_memory()[1] < 8_000_000
    finally:
        tracemalloc.stop()


def test_values_of_a_tsv_file_are_quoted_as_in_csv() -> None:
    data = b'a\tb\n"x\ty"\t"say ""hi"""\n'
    assert read("r.tsv", data) == [({"a": "x\ty", "b": 'say "hi"'}, "r.tsv:2")]
    with pytest.raises(DataError, match=r"r\.tsv:2: expected 2 columns"):
        read("r.tsv", b"a\tb\n1,2\n")
    with pytest.raises(DataError, match=r"r\.tsv:2: not valid TSV"):
        read("r.tsv", b'a\tb\n"open\t2\n')


# ------------------------------------------------------------------------------------------------ JSON lists


def outcome(text: str) -> Any:
    """The rows of a JSON list, or the error."""
    try:
        return read("r.json", text.encode())
    except DataError as e:
        return e.message


@pytest.mark.parametrize("block", [1, 2, 3, 7, 64])
@pytest.mark.parametrize(
    "text",
    [
        json.dumps(ROWS[:5], indent=2),
        '\n[\n  {"a": 1e300},\n  {\n    "a": "\\u00e9\\n"\n  }\n,\n {"a": [true, null, -0.5]} ]\n\n',
        '[{"a": 1}, 123456]',
        '[{"a": 1},\n  tru]',
        '[{"a": 1},\n {"a" 2}]' + " " * 100,
        '[{"a": 1}\n{"a": 2}]',
        '[{"a": 1},\n',
        '[{"a": 1},]',
        '[{"a": "never closed',
        '[{"a": 1}] x',
        '{"a": 1}',
        "",
    ],
)
def test_the_size_of_the_pieces_that_are_read_does_not_change_the_result(
    text: str, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = outcome(text)
    monkeypatch.setattr(json_list, "BLOCK", block)
    assert outcome(text) == whole


def test_a_list_that_ends_with_a_comma_is_an_error() -> None:
    assert outcome('[{"a": 1},]') == "r.json:1: not valid JSON: Expecting value (column 11)"


def test_an_error_far_from_the_end_is_found_without_reading_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_list, "BLOCK", 100)
    stream = io.StringIO('[{"a": 1},\n{"a" 2},' + '{"a": 3},' * 100_000)
    with pytest.raises(json_list.JSONListError, match=r"Expecting ':' delimiter \(column 6\)") as caught:
        list(json_list.JSONListReader(stream).rows())
    assert caught.value.line == 2
    assert stream.tell() < 1000
