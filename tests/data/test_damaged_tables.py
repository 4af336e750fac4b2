"""Damaged and expanding Parquet and Arrow files are refused by name: pyarrow would crash, or fill the memory."""

from __future__ import annotations

import struct
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import parquet

from smollm3_finetune.data import files
from smollm3_finetune.data.files import read_file
from smollm3_finetune.errors import DataError


def stream(file: Path, table: pa.Table, **options: Any) -> Path:
    with pa.OSFile(str(file), "wb") as sink, pa.ipc.new_stream(sink, table.schema, **options) as writer:
        writer.write_table(table)
    return file


def test_an_offset_beyond_the_text_is_found(tmp_path: Path) -> None:
    file = stream(tmp_path / "a.arrow", pa.table({"text": ["hello", "world", "!"]}))
    data = file.read_bytes()
    offsets = struct.pack("<4i", 0, 5, 10, 11)
    assert data.count(offsets) == 1
    file.write_bytes(data.replace(offsets, struct.pack("<4i", 0, 5, 1_900_000_000, 11)))
    with pytest.raises(DataError, match=r"a\.arrow is not an Arrow file, or is damaged: .*offset"):
        list(read_file(file))


def test_a_crash_of_the_reader_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = stream(tmp_path / "a.arrow", pa.table({"text": ["hello"]}))
    crash = tmp_path / "crash.py"
    crash.write_text("def answer(job):\n    import os, signal; os.kill(os.getpid(), signal.SIGBUS)\n")
    monkeypatch.setattr(files, "SCRIPT", crash)
    with pytest.raises(DataError, match=r"a\.arrow is damaged: reading it ended Python with signal SIGBUS"):
        list(read_file(file))


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux limits memory")
def test_a_small_file_that_expands_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SMOLLM3_MAX_ROWS_MB", "50")
    large = pa.table({"text": ["a" * 1_000_000] * 200})
    shared = pa.table({"text": pa.array(["a" * 1_000_000] * 200).dictionary_encode()})
    lists = pa.table({"text": pa.ListArray.from_arrays([0, 200], shared["text"].chunk(0))})
    made = [stream(tmp_path / f"{n}.arrow", t, options=pa.ipc.IpcWriteOptions(compression="zstd"))
            for n, t in enumerate((large, shared, lists))]  # fmt: skip
    parquet.write_table(large, tmp_path / "a.parquet", compression="zstd")
    for file in (*made, tmp_path / "a.parquet"):
        assert file.stat().st_size < 1_100_000
        with pytest.raises(DataError, match="needs more than 50 MB of memory when it is decompressed") as e:
            list(read_file(file))
        assert e.value.hint == "if you trust the file: SMOLLM3_MAX_ROWS_MB=100"


def test_a_file_is_checked_once_and_only_as_far_as_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = stream(tmp_path / "a.arrow", pa.table({"text": ["a", "b", "c"]}))
    limits, original = [], files.in_separate_process

    def counted(script: Path, job: Any, **options: Any) -> Any:
        limits.append(job["limit"])
        return original(script, job, **options)

    monkeypatch.setattr(files, "in_separate_process", counted)
    for limit in (1, 1, None, 2, None):
        assert len(list(read_file(file, limit))) == (limit or 3)
    assert limits == [1, None]
    stream(file, pa.table({"text": ["a", "b", "c", "d"]}))
    assert len(list(read_file(file))) == 4
    assert limits == [1, None, None]


def test_a_large_batch_is_converted_in_parts(tmp_path: Path) -> None:
    file = stream(tmp_path / "a.arrow", pa.table({"n": list(range(2500))}))
    rows = list(read_file(file))
    assert [r.value["n"] for r in rows] == list(range(2500))
    assert rows[-1].where == f"{file} row 2500"


def test_a_long_or_deep_row_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SMOLLM3_MAX_JSON_MB", "1")
    file = tmp_path / "a.jsonl"
    file.write_text('{"text": "a"}\n{"text": "' + "a" * 1_100_000 + '"}\n')
    with pytest.raises(DataError, match=r"a\.jsonl:2: the row is larger than 1 MB"):
        list(read_file(file))
    for name, text in (("b.jsonl", "{}\n"), ("b.json", "[")):
        (tmp_path / name).write_text(text + '{"text": ' + "[" * 150 + "]" * 150 + "}" + ("]" if text == "[" else ""))
        with pytest.raises(DataError, match=r"b\.json.*: not valid JSON: it is nested too deeply"):
            list(read_file(tmp_path / name))
