"""Sources of every kind: streamed, split, weighted, and tokenized into the cache."""

from __future__ import annotations

import csv
import errno
import json
import os
import shutil
import types
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from smollm3_finetune.api import NoOptions
from smollm3_finetune.batching.order import PIECE, Shuffled
from smollm3_finetune.builtin.tiny_loader import TinyLoader
from smollm3_finetune.cache.store import Cache
from smollm3_finetune.components.discovery import PluginSelection, discover
from smollm3_finetune.components.kinds import OBJECTIVE
from smollm3_finetune.components.registry import Registry
from smollm3_finetune.components.selection import choose
from smollm3_finetune.data.chat_template.renderer import Renderer, RenderOptions
from smollm3_finetune.data.examples import BATCH
from smollm3_finetune.data.rows import Rows, source_rows, with_formatter
from smollm3_finetune.data.sources import find_sources, pinned
from smollm3_finetune.data.tokenization import Tokens, copies, tokenize
from smollm3_finetune.errors import ConfigError, DataError, WriteError
from smollm3_finetune.progress import Silent
from smollm3_finetune.testing import context

ROWS = [{"instruction": f"Say {n}.", "input": "", "output": f"It is {n}: “été”, 你好."} for n in range(40)]


@pytest.fixture
def registry() -> Registry:
    return discover(PluginSelection.of([], no_plugins=True))


def write(name: str, rows: list[dict[str, Any]]) -> str:
    """Write the rows in the format given by the file name."""
    file = Path(name)
    file.parent.mkdir(parents=True, exist_ok=True)
    if file.suffix == ".jsonl":
        file.write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")
    elif file.suffix == ".json":
        file.write_text(json.dumps(rows), encoding="utf-8")
    elif file.suffix == ".csv":
        with file.open("w", encoding="utf-8", newline="") as stream:
            writer = csv.DictWriter(stream, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    else:
        import pyarrow
        from pyarrow import parquet

        table = pyarrow.Table.from_pylist(rows)
        if file.suffix == ".parquet":
            parquet.write_table(table, str(file))
        else:
            opened = pyarrow.ipc.new_stream if "stream" in name else pyarrow.ipc.new_file
            with pyarrow.OSFile(name, "wb") as sink, opened(sink, table.schema) as out:
                out.write_table(table)
    return name


@pytest.mark.parametrize("name", ["r.jsonl", "r.json", "r.csv", "r.parquet", "r.arrow", "stream.arrow"])
def test_every_format_gives_the_same_rows_with_line_numbers(name: str) -> None:
    (source,) = find_sources(write(name, ROWS))
    rows = list(source_rows(source))
    assert [dict(r.value) for r in rows] == ROWS
    assert len({r.where for r in rows}) == (1 if name == "r.json" else len(ROWS))  # this .json is one line
    assert all(r.where.startswith(name) for r in rows)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("r.csv", "a,b\n1,2\n3\n", "r.csv:3: expected 2 columns"),
        ("r.csv", 'a,b\n"1,2\n', "r.csv:2: not valid CSV"),
        ("r.csv", "a,b\n", "contains no rows"),
        ("r.parquet", "nothing", "r.parquet is not a Parquet file"),
        ("r.arrow", "nothing", "r.arrow is not an Arrow file"),
    ],
)
def test_a_file_with_a_wrong_extension_is_named(name: str, text: str, message: str) -> None:
    Path(name).write_text(text)
    with pytest.raises(DataError, match=message):
        list(source_rows(find_sources(name)[0]))


def calls(**arguments: Any) -> dict[str, Any]:
    """A row with a tool, a call of it with these arguments, and an empty answer."""
    call = {"type": "function", "function": {"name": "f", "arguments": arguments}}
    said = [{"role": "user", "content": "u"}, {"role": "assistant", "content": None, "tool_calls": [call]}]
    properties = {name: {"type": "string"} for name in arguments}
    tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": properties}}}
    return {"messages": [*said, {"role": "assistant", "content": None}], "tools": [tool], "system": None}


CALLS = [calls(city="Paris"), calls(query="x", within=[{"low": 1}, {"high": 2}, None])]


@pytest.mark.parametrize("name", ["r.parquet", "r.arrow", "stream.arrow"])
def test_nulls_that_fill_up_a_table_are_not_trained_on(name: str, registry: Registry) -> None:
    (source,) = find_sources(write(name, CALLS))
    rows = [r.value for r in source_rows(source)]
    assert rows[0]["system"] is None, "a column stays"
    assert rows[0]["messages"][2]["content"] is None, "an answer without content says so"
    assert rows[1]["messages"][1]["tool_calls"] == CALLS[1]["messages"][1]["tool_calls"]
    found = with_formatter(registry, source, None, None).conversations()
    (jsonl,) = find_sources(write("r.jsonl", CALLS))
    assert [c for _, c in found] == [c for _, c in with_formatter(registry, jsonl, None, None).conversations()]


def test_explicit_nulls_in_jsonl_rows_are_kept() -> None:
    (source,) = find_sources(write("r.jsonl", [calls(city=None)]))
    (row,) = source_rows(source)
    assert row.value["messages"][1]["tool_calls"][0]["function"]["arguments"] == {"city": None}


def test_a_directory_and_a_glob_read_all_their_files_in_order() -> None:
    write("rows/b.jsonl", ROWS[20:])
    write("rows/a.csv", ROWS[:20])
    Path("rows/readme.txt").write_text("not rows")
    assert [dict(r.value) for r in source_rows(find_sources("rows")[0])] == ROWS
    assert [dict(r.value) for r in source_rows(find_sources("rows/*.jsonl")[0])] == ROWS[20:]


def test_sources_have_separate_options(registry: Registry) -> None:
    write("a.jsonl", ROWS)
    write("b.jsonl", [{"messages": [{"role": "user", "content": "u"}, {"role": "assistant", "content": "a"}]}] * 3)
    a, b = find_sources(["a.jsonl", {"path": "b.jsonl", "weight": 2, "limit": 2}])
    assert [with_formatter(registry, s, None, None).formatter.component.spec.name for s in (a, b)] == [
        "alpaca",
        "messages",
    ]
    assert len(list(source_rows(b))) == 2
    assert len(list(source_rows(a, 5))) == 5


def test_sources_have_distinct_titles(monkeypatch: pytest.MonkeyPatch) -> None:
    FakeHub(monkeypatch)
    write("a.jsonl", ROWS)
    hub = {"path": "org/rows"}
    entries = [
        *("a.jsonl", "a.jsonl", {"path": "a.jsonl", "limit": 2}, str(Path("a.jsonl").absolute()), hub),
        *({**hub, "split": "test"}, {**hub, "split": "test", "subset": "en"}, {**hub, "subset": "en"}, hub),
    ]
    assert [s.title for s in find_sources(entries)] == [
        *("a.jsonl", "a.jsonl (2)", "a.jsonl (3)", "a.jsonl (4)", "org/rows"),
        *("org/rows[test]", "org/rows[en/test]", "org/rows[en/train]", "org/rows (2)"),
    ]
    assert [find_sources(entry)[0].title for entry in ("a.jsonl", hub, "*.jsonl")] == ["a.jsonl", "org/rows", "*.jsonl"]


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ([], "empty list"),
        ([{"weight": 1}], r"data.path\[0\]: the source has no path"),
        (
            [{"path": "a.jsonl", "wieght": 1}],
            r"data.path\[0\]: a source has no key 'wieght'\n  hint: for example: \{path: a.jsonl, weight: 1\}",
        ),
        (
            [{"path": "a.jsonl", "weight": 0}],
            r"data.path\[0\].weight: expected number \(greater than 0, at most 1000\)",
        ),
    ],
)
def test_a_wrong_entry_is_named(path: Any, message: str) -> None:
    write("a.jsonl", ROWS)
    with pytest.raises(ConfigError, match=message):
        find_sources(path)


def test_a_hub_dataset_without_a_network_is_one_sentence() -> None:
    with pytest.raises(DataError, match="'org/rows' is not a local file and cannot be read as a Hub dataset"):
        pinned(*find_sources("org/rows"))


class FakeHub:
    """One dataset of two commits, whose branch moves when it is told to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, rows: Sequence[dict[str, Any]] | None = None) -> None:
        self.branch, self.rows = "1111", rows
        self.asked: list[dict[str, Any]] = []
        monkeypatch.setattr("huggingface_hub.HfApi.dataset_info", self.dataset_info)
        monkeypatch.setattr("datasets.load_dataset", self.load_dataset)

    def dataset_info(self, name: str, revision: str | None = None) -> Any:
        assert name == "org/rows"
        return types.SimpleNamespace(sha=revision or self.branch)

    def load_dataset(self, name: str, subset: str | None, **asked: Any) -> list[dict[str, Any]]:
        self.asked.append({"name": name, "subset": subset, **asked})
        if asked["split"] != "train_sft":
            raise ValueError(f"Bad split: {asked['split']}. Available splits: ['train_sft']\nmore")
        if self.rows is not None:
            return list(self.rows)
        return [{**row, "output": f"{row['output']} ({asked['revision']})"} for row in ROWS]


def test_a_hub_dataset_is_read_at_one_commit(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = FakeHub(monkeypatch)
    (source,) = find_sources({"path": "org/rows", "split": "train_sft", "subset": "en"})
    formatted = with_formatter(registry, pinned(source), None, None)
    hub.branch = "2222"  # someone pushes between two passes
    said = [conversation.messages[-1]["content"] for _, conversation in formatted.conversations()]
    assert all(text.endswith(" (1111)") for text in said)
    expected = {"name": "org/rows", "subset": "en", "split": "train_sft", "revision": "1111", "streaming": True}
    assert hub.asked == [expected, expected], "the first row for its formatter, then all"
    again = with_formatter(registry, pinned(*find_sources([{"path": "org/rows", "split": "train_sft"}])), None, None)
    assert again.identity() != formatted.identity()


def test_a_run_keeps_the_commit_of_a_hub_dataset(cli: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = FakeHub(monkeypatch)
    write("own.jsonl", ROWS)
    where = "data.path={path: org/rows, split: train_sft}"
    shown = cli("train", "--adapter", "full", "--set", where, "--dry-run", "--json").report()
    entry = {"path": "org/rows", "split": "train_sft", "revision": "1111"}
    assert shown["config"]["data"]["path"] == entry
    hub.branch = "2222"
    both = f"data.path=[own.jsonl, {json.dumps(entry)}]"
    shown = cli("train", "--adapter", "full", "--set", both, "--dry-run", "--json").report()
    kept = shown["config"]["data"]["path"]
    assert kept[0]["path"] == str(Path("own.jsonl").absolute())
    assert kept[1] == {**entry, "formatter": "smollm3-finetune:alpaca"}


def test_a_wrong_split_is_one_sentence_with_a_hint(cli: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    FakeHub(monkeypatch)
    result = cli("train", "--adapter", "full", "--data", "org/rows", "--dry-run")
    assert result.code == 5
    assert "cannot be read as a Hub dataset: Bad split: train. Available splits: ['train_sft']" in result.stderr
    assert "--set 'data.path={path: org/rows, split: SPLIT, subset: SUBSET}'" in result.stderr


@pytest.mark.parametrize("named", [(), ("--formatter", "alpaca")])
def test_an_empty_split_is_one_sentence(cli: Any, named: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    FakeHub(monkeypatch, rows=[])
    where = ("--set", "data.path={path: org/rows, split: train_sft}")
    result = cli("train", "--adapter", "full", *where, *named, "--dry-run")
    assert result.code == 5
    assert result.stderr == (
        "error: org/rows[train_sft] contains no rows\n"
        "  hint: --set 'data.path={path: org/rows, split: SPLIT, subset: SUBSET}'\n"
    )


def test_rows_of_the_hub_have_no_fill_up_nulls(monkeypatch: pytest.MonkeyPatch) -> None:
    import pyarrow

    FakeHub(monkeypatch, rows=pyarrow.Table.from_pylist(CALLS).to_pylist())
    (source,) = find_sources({"path": "org/rows", "split": "train_sft"})
    first, _ = source_rows(source)
    assert first.value["messages"][1]["tool_calls"] == CALLS[0]["messages"][1]["tool_calls"]
    assert first.value["tools"] == CALLS[0]["tools"]


def test_the_example_is_a_held_out_row_for_few_rows_too(registry: Registry) -> None:
    moved = 0
    for start in range(20):
        rows = [{"instruction": f"{start}-{n} " + "and so on " * n, "output": "Yes."} for n in range(8)]
        write("few.jsonl", rows)
        sources = tuple(with_formatter(registry, s, None, None) for s in find_sources("few.jsonl"))
        all_rows = Rows(sources=sources, seed=0, held_out=0.1)
        survey = all_rows.survey()
        moved += survey.threshold != 0.1
        held_out = [row.conversation for row in all_rows.positioned() if row.position < survey.threshold]
        assert survey.example in held_out
    assert moved > 5


# ------------------------------------------------------------------------------------------------- tokens


Make = Callable[..., Tokens]


@pytest.fixture
def make(registry: Registry, tmp_path: Path) -> Make:
    """Tokens of sources with the embedded model's tokenizer; counts how often they were computed."""
    cache = Cache(tmp_path / "tokens")
    built: list[str] = []

    class Telling(Silent):
        def task(self, description: str, total: int | None = None) -> Any:
            built.append(description)
            return super().task(description, total)

    tokenizer = TinyLoader(NoOptions()).open("tiny", context(tmp_path)).tokenizer()

    def made(path: Any, *, held_out: float = 0.1, seed: int = 0, max_length: int = 256, **render: Any) -> Tokens:
        sources = tuple(with_formatter(registry, s, None, None) for s in find_sources(path))
        rows = Rows(sources=sources, seed=seed, held_out=held_out)
        renderer = Renderer(tokenizer, RenderOptions(**render))
        objective = choose(registry, OBJECTIVE, "sft", {})
        return tokenize(rows, rows.survey(), objective, renderer, max_length, cache, Telling())

    made.built = built  # type: ignore[attr-defined]
    return made


def items(examples: Any) -> list[dict[str, list[int]]]:
    return [examples[i] for i in range(len(examples))]


def test_every_row_is_trained_on_held_out_or_counted_as_skipped(make: Make) -> None:
    tokens = make(write("a.jsonl", ROWS), held_out=0.3)
    (counts,) = tokens.counts
    assert (counts.train, counts.held_out) == (len(tokens.train), len(tokens.held_out[0]))
    assert counts.train + counts.held_out + counts.empty == len(ROWS)
    assert counts.held_out > 2
    seen = [tuple(e["input_ids"]) for e in items(tokens.train) + items(tokens.held_out[0])]
    assert len(set(seen)) == len(ROWS)
    assert tokens.train.lengths() == [len(e["input_ids"]) for e in items(tokens.train)]


def test_rows_cut_before_their_answer_are_counted(make: Make) -> None:
    long = {"instruction": "word " * 200, "input": "", "output": "never reached"}
    tokens = make(write("a.jsonl", [*ROWS, long]), max_length=64)
    (counts,) = tokens.counts
    assert counts.empty == 1
    assert counts.notes["cut"] >= 1


def test_a_weight_sets_how_often_a_row_is_used(make: Make) -> None:
    write("a.jsonl", ROWS)
    single = len(make("a.jsonl").train)
    assert len(make([{"path": "a.jsonl", "weight": 3}]).train) == 3 * single
    assert [copies(2.0, n / 7) for n in range(7)] == [2] * 7
    many = [copies(0.25, n / 9973) for n in range(9973)]
    assert set(many) == {0, 1}
    assert abs(sum(many) / len(many) - 0.25) < 0.02


def test_tokens_are_computed_once_and_again_after_any_change(make: Make) -> None:
    built: list[str] = make.built  # type: ignore[attr-defined]
    file = write("a.jsonl", ROWS)
    first = items(make(file).train)
    assert items(make(file).train) == first
    shutil.copy(file, "renamed.jsonl")
    assert items(make("renamed.jsonl").train) == first, "the content decides, not the name"
    assert len(built) == 1
    assert [make(name).counts[0].title for name in (file, "renamed.jsonl")] == ["a.jsonl", "renamed.jsonl"]
    changes: list[Callable[[], Tokens]] = [
        lambda: make(file, seed=1),
        lambda: make(file, held_out=0.2),
        lambda: make(file, max_length=255),
        lambda: make(file, enable_thinking=True),
        lambda: make(file, date="2026-01-02"),
        lambda: make([{"path": file, "weight": 2}]),
        lambda: make(write(file, [*ROWS[:-1], {**ROWS[-1], "output": "changed"}])),
    ]
    for n, change in enumerate(changes, start=2):
        change()
        assert len(built) == n


@pytest.mark.parametrize("name", ["train.arrow", "held_out-0.arrow", "counts.json"])
def test_damaged_tokens_are_built_again(make: Make, tmp_path: Path, name: str) -> None:
    file = write("a.jsonl", ROWS)
    first = items(make(file).train)
    (entry,) = [p for p in (tmp_path / "tokens" / "tokens").iterdir() if p.is_dir()]
    whole = (entry / name).read_bytes()
    pieces = [len(whole) * n // 12 for n in range(12)]  # data, and the metadata that pyarrow does not check
    for place in pieces:
        flipped = bytearray(whole)
        flipped[place] ^= 1 << place % 8
        (entry / name).write_bytes(flipped)
        assert items(make(file).train) == first
        assert (entry / name).read_bytes() == whole
    os.truncate(entry / name, 3)
    assert items(make(file).train) == first
    assert len(make.built) == 1 + len(pieces) + 1  # type: ignore[attr-defined]


def test_a_full_disk_is_not_tried_twice(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("smollm3_finetune.data.examples._ArrowFile.flush", full)
    with pytest.raises(WriteError, match="cannot be written: the disk is full"):
        make(write("a.jsonl", ROWS))
    assert len(make.built) == 1  # type: ignore[attr-defined]


def test_rows_can_be_read_from_several_batches_in_any_order(make: Make) -> None:
    rows = [{"instruction": f"q {i}", "output": f"answer {i}"} for i in range(2 * BATCH + 7)]
    examples = make(write("a.jsonl", rows), held_out=0.0).train
    assert len(examples) == len(rows)
    assert examples.lengths() == [len(e["input_ids"]) for e in items(examples)]
    assert len({tuple(e["input_ids"]) for e in items(examples)}) == len(rows)
    assert examples[-1] == examples[len(rows) - 1]
    with pytest.raises(IndexError):
        examples[len(rows)]


def test_each_pass_uses_every_row_once_in_a_new_order() -> None:
    size = 2 * PIECE + 3
    order = Shuffled(size, seed=1)
    first, again = list(order), list(order)
    assert first == again and sorted(first) == list(range(size)) and first != sorted(first)
    order.set_epoch(1)
    second = list(order)
    assert second != first and sorted(second) == list(range(size))


def test_a_row_that_the_template_refuses_is_named_by_file_and_line(make: Make) -> None:
    good = {"messages": [{"role": "user", "content": "u"}, {"role": "assistant", "content": "a"}]}
    write("a.jsonl", [good, good, {**good, "chat_template_kwargs": {"python_tools": ["def f(): ..."]}}])
    with pytest.raises(DataError, match=r"^a\.jsonl:3: "):
        make("a.jsonl")


def test_nothing_to_learn_at_all_is_refused(make: Make) -> None:
    with pytest.raises(DataError) as caught:
        make(write("a.jsonl", ROWS), held_out=0, max_length=8)
    first = f"none of the {len(ROWS)} training rows has supervised tokens; the first is a.jsonl:1: "
    assert caught.value.message.startswith(f"{first}the supervised tokens begin at token ")
    assert caught.value.hint is not None and caught.value.hint.startswith("--max-length ")


def said(*turns: tuple[str, dict[str, Any]]) -> dict[str, Any]:
    roles = ("user", "assistant")
    return {"messages": [{"role": roles[i % 2], "content": t, **more} for i, (t, more) in enumerate(turns)]}


def test_rows_without_supervised_tokens_give_their_own_reason_and_length_only_if_they_were_cut(make: Make) -> None:
    masked = [said((f"q{n}", {}), ("a", {"train": False})) for n in range(3)]
    thoughts = [said((f"q{n}", {}), ("<think>only this</think>", {})) for n in range(3)]
    first = "none of the 3 training rows has supervised tokens; the first is a.jsonl:1: "
    for rows, why in (
        (masked, "none of its messages is supervised"),
        (thoughts, "empty turn: an answer that is empty or contains only reasoning is not supervised"),
    ):
        with pytest.raises(DataError) as caught:
            make(write("a.jsonl", rows), held_out=0, max_length=64)
        assert (caught.value.message, caught.value.hint) == (first + why, "smollm3 data preview --data a.jsonl")
        with pytest.raises(DataError, match=r"^none of the 2 training rows has .*") as split:
            make("a.jsonl", held_out=0.1, max_length=64)
        assert "held-out" not in str(split.value), "the reason of the other side is not repeated"
    long = said(("word " * 100, {}), ("a", {}))
    with pytest.raises(
        DataError, match=r"has supervised tokens; one is a\.jsonl:4: the supervised tokens begin"
    ) as cut:
        make(write("a.jsonl", [*masked, long]), held_out=0, max_length=64)
    enough = int(str(cut.value.hint).removeprefix("--max-length "))
    assert make(write("a.jsonl", [*masked, long]), held_out=0, max_length=enough).counts[0].train == 1


def test_losses_are_reported_by_source(cli: Callable[..., Any]) -> None:
    write("a.jsonl", ROWS)
    write("b.jsonl", [{"instruction": f"Count to {n}.", "output": "one two " * n} for n in range(1, 30)])
    two = ("--data", "a.jsonl", "--data", "b.jsonl", "--max-steps", "2", "--set", "train.sample_tokens=2")
    two += ("--set", "data.held_out=0.3")
    result = cli("train", "--adapter", "full", *two, "--json")
    assert result.code == 0, result.stderr
    report = json.loads(result.stdout)
    assert set(report["after"]["by_source"]) == {"a.jsonl", "b.jsonl"}
    low, high = sorted(report["after"]["by_source"].values())
    assert low < report["after"]["held_out_loss"] < high
    assert [r["title"] for r in report["rows"]] == ["a.jsonl", "b.jsonl"]
    again = cli("train", "--config", f"{report['run']}/run.yaml", "--json")
    assert json.loads(again.stdout)["after"] == report["after"]


def test_a_file_given_twice_is_two_sources(cli: Callable[..., Any]) -> None:
    write("a.jsonl", ROWS)
    path = "data.path=[{path: a.jsonl, limit: 20}, a.jsonl]"
    quick = ("--max-steps", "2", "--set", "train.sample_tokens=2", "--set", "data.held_out=0.3")
    report = cli("train", "--adapter", "full", "--set", path, *quick, "--json").report()
    assert [r["title"] for r in report["rows"]] == ["a.jsonl", "a.jsonl (2)"]
    losses = report["after"]["by_source"]
    assert list(losses) == ["a.jsonl", "a.jsonl (2)"]
    assert losses["a.jsonl"] != losses["a.jsonl (2)"]


def test_a_run_resumed_in_another_directory_identifies_its_sources_by_path(
    cli: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    write("a.csv", ROWS[:20])
    write("b.csv", ROWS[20:])
    quick = ("--max-steps", "2", "--set", "train.sample_tokens=2", "--set", "data.held_out=0.3")
    saving = ("--set", "train.save_every=1", "--output", "run")
    first = cli("train", "--adapter", "full", "--data", "a.csv", "--data", "b.csv", *quick, *saving, "--json").report()
    monkeypatch.chdir(tmp_path)
    result = cli("train", "--resume", "work/run", "--max-steps", "3")
    assert result.code == 0, result.stderr
    report = json.loads(Path("work/run/report.json").read_text())
    assert list(report["before"]["by_source"]) == list(report["after"]["by_source"]) == ["work/a.csv", "work/b.csv"]
    assert list(report["before"]["by_source"].values()) == list(first["before"]["by_source"].values())
    assert [r["title"] for r in report["rows"]] == ["work/a.csv", "work/b.csv"]


def test_a_tuned_model_ends_its_turn_if_loaded_elsewhere(cli: Callable[..., Any]) -> None:
    """The saved tokenizer and generation config contain the end of a turn, even if the base's do not."""
    result = cli("train", "--adapter", "full", "--max-steps", "2", "--output", "out", "--json")
    assert result.code == 0, result.stderr
    tokenizer = json.loads(Path("out/adapter/tokenizer_config.json").read_text())
    assert tokenizer["eos_token"] == "<|im_end|>"
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained("out/adapter")
    loaded = AutoTokenizer.from_pretrained("out/adapter")
    stops = model.generation_config.eos_token_id
    assert loaded.convert_tokens_to_ids("<|im_end|>") in (stops if isinstance(stops, list) else [stops])


def test_weights_that_leave_no_row_are_an_error(make: Make) -> None:
    write("a.jsonl", ROWS[:6])
    with pytest.raises(DataError, match=r"the weights of the sources leave none of the \d training rows"):
        make([{"path": "a.jsonl", "weight": 1e-6}])
