"""Directories that `datasets` wrote are sources: one dataset, several splits, and its cache."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pytest

from smollm3_finetune.data.rows import source_rows
from smollm3_finetune.data.sources import find_sources
from smollm3_finetune.errors import DataError

Cli = Callable[..., Any]


def values(path: Any) -> list[str]:
    (source,) = find_sources(path)
    return [row.value["text"] for row in source_rows(source)]


def write_arrow(file: Path, *texts: str) -> None:
    table = pyarrow.table({"text": list(texts)})
    with pyarrow.OSFile(str(file), "wb") as sink, pyarrow.ipc.new_stream(sink, table.schema) as out:
        out.write_table(table)


def save(directory: str, *shards: tuple[str, ...], **state: Any) -> Path:
    """Write the rows as `Dataset.save_to_disk` does."""
    path = Path(directory)
    path.mkdir(parents=True)
    names = [f"data-{i:05}-of-{len(shards):05}.arrow" for i in range(len(shards))]
    for name, texts in zip(names, shards, strict=True):
        write_arrow(path / name, *texts)
    (path / "state.json").write_text(json.dumps({"_data_files": [{"filename": n} for n in names], **state}))
    (path / "dataset_info.json").write_text(json.dumps({"features": {}}))
    return path


def test_what_datasets_saves_is_read(cli: Cli, isolated: Path) -> None:
    from datasets import Dataset, DatasetDict

    rows = [
        {"messages": [{"role": "user", "content": f"q{i}"}, {"role": "assistant", "content": "a"}]} for i in range(8)
    ]
    Dataset.from_list(rows).save_to_disk("one", num_shards=2)
    DatasetDict(train=Dataset.from_list(rows), test=Dataset.from_list(rows[:2])).save_to_disk("two")
    assert [dict(r.value) for r in source_rows(find_sources("one")[0])] == rows
    counted = json.loads(cli("data", "stats", "--json", "--data", "one", "--data", "two").stdout)
    assert [(s["title"], s["rows"]) for s in counted["sources"]] == [("one", 8), ("two", 8)]
    (test,) = find_sources({"path": "two", "split": "test"})
    assert (test.title, len(list(source_rows(test)))) == ("two[test]", 2)


def test_the_files_of_a_saved_dataset_are_those_of_its_state_in_order(isolated: Path) -> None:
    path = save("saved", ("a", "b"), ("c",))
    write_arrow(path / "cache-0123456789abcdef.arrow", "left over")
    assert values("saved") == ["a", "b", "c"]


def test_a_split_that_does_not_exist_is_refused_with_the_others(isolated: Path) -> None:
    save("splits/test", ("t",))
    save("splits/train_sft", ("s",))
    Path("splits/dataset_dict.json").write_text(json.dumps({"splits": ["train_sft", "test"]}))
    with pytest.raises(DataError) as caught:
        find_sources("splits")
    assert caught.value.message == "the dataset 'splits' has no split 'train'; its splits: 'train_sft', 'test'"
    assert caught.value.hint == "--set 'data.path={path: splits, split: train_sft}'"
    assert values({"path": "splits", "split": "train_sft"}) == ["s"]


def test_a_directory_of_the_cache_has_the_rows_of_one_split(isolated: Path) -> None:
    Path("cached").mkdir()
    Path("cached/dataset_info.json").write_text(json.dumps({"splits": {"train": {}, "test": {}}}))
    write_arrow(Path("cached/json-train-00000-of-00002.arrow"), "a")
    write_arrow(Path("cached/json-train-00001-of-00002.arrow"), "b")
    write_arrow(Path("cached/json-test.arrow"), "t")
    write_arrow(Path("cached/cache-0123456789abcdef.arrow"), "result of map")
    assert values("cached") == ["a", "b"]
    assert values({"path": "cached", "split": "test"}) == ["t"]
    with pytest.raises(DataError, match="has no split 'validation'; its splits: 'test', 'train'"):
        find_sources({"path": "cached", "split": "validation"})


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"_data_files": [{"filename": "data-2.arrow"}]}, r"data-2\.arrow is missing, although .*state\.json lists it"),
        ({"_data_files": [{"filename": "../data.arrow"}]}, "expected the name of a file in this directory"),
        ({"_data_files": []}, r"saved contains no rows: .*state\.json lists no file"),
        ({"_data_files": None}, "does not describe a dataset: expected a list in '_data_files', found None"),
        ({"_indices_data_files": [{"filename": "i.arrow"}]}, "selects rows by an index file, which is not supported"),
    ],
)
def test_a_damaged_directory_is_one_sentence(state: dict[str, Any], message: str, isolated: Path) -> None:
    save("saved", ("a",), **state)
    with pytest.raises(DataError, match=message):
        find_sources("saved")
